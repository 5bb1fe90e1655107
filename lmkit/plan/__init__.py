"""Will it fit, how long does it take, what does it cost: before any accelerator is paid for."""
