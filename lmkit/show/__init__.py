"""What a row of a step holds, to be read by people."""
