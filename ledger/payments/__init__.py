"""The treasury: money that people pay for credits, by way of backends; reports what it sees."""
