"""Compiled programs: how they are asked for, read, and made for devices that are not here."""
