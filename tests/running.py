"Commands run in the process of the tests."
import io, json
from contextlib import redirect_stderr, redirect_stdout

from lmft.cli import main
from lmft.core import said

def run(*argv, code=0):
    "stdout of a command; the one line on stderr, besides notes on the data, if it is to be rejected"
    out,err = io.StringIO(),io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): got = main([str(a) for a in argv])
    assert got==code, err.getvalue()
    lines = [l for l in err.getvalue().splitlines(True) if l.strip().removeprefix('lmft: ') not in said]
    if code: assert len(lines)==1 and lines[0].startswith('lmft: '), err.getvalue()
    return lines[0] if code else out.getvalue()

def metrics(out): return json.loads((out/'metrics.json').read_text())
def lines(path): return [json.loads(l) for l in path.read_text().splitlines()]

timed = 'tokens_per_s', 'tflops', 'memory_gb'                   # what two runs of the same thing need not have in common
def untimed(row): return {k: v for k,v in row.items() if k not in timed}
def log(out): return [untimed(row) for row in lines(out/'log.jsonl')]
def figures(out): return untimed(metrics(out))
