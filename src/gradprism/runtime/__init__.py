"""What every room stands on: atomic files, claimed folders, locks, ranks, the cost ledger, memory, progress, errors."""
