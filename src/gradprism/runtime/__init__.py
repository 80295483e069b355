"""The foundation of every room: atomic files, claimed folders, locks, ranks, the cost ledger, memory, progress, errors."""
