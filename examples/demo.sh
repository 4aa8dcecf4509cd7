# The demonstration that `make demo` runs inside a grid: three real jobs, their bills, the ledger.
# Expects GRISTMILL_ADDRESS and the environment's bin folder first on PATH.
mkdir -p out
for example in stdlib_audit mandelbrot test_suite; do
    printf '\n== %s\n' "$example"
    python "examples/$example.py"
done
printf '\n== what it cost\n'
gristmill usage
printf '\n== the ledger: every transfer has two sides, so the accounts add up to zero\n'
gristmill balance --all
