"""The decisions of the ledger, pure: which transfers an entry of an outbox makes."""
