"""The settlement: reads the chain, sends the ledger's transactions, holds both to each other."""
