"""What every scenario needs: the machine's card, cpu by process, floors, one JSON line a run."""
