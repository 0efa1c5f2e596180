"""Other libraries' names and files, turned into schedules and denoisers."""
