"""What every scenario needs: the machine's name card, cpu by process, floors, one JSON line a
run."""
