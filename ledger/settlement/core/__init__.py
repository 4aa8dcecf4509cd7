"""What the settlement decides: nonces, blocks, sums and epochs, without a socket or a clock."""
