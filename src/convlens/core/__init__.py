"""Plain numbers and their bytes: columns, histories, steps, epochs, snapshots. No torch."""
