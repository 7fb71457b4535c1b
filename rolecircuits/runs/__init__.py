"""What a run folder holds: its files, arrays and record, and how a run is repeated. No torch."""
