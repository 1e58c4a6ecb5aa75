"Commands run in the process of the tests."
import io, json
from contextlib import redirect_stderr, redirect_stdout

from lmft.cli import main

def run(*argv, code=0):
    "stdout of a command; the one line on stderr if it is to be refused"
    out,err = io.StringIO(),io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): got = main([str(a) for a in argv])
    assert got==code, err.getvalue()
    if code: assert err.getvalue().startswith('lmft: ') and err.getvalue().count('\n')==1, err.getvalue()
    return err.getvalue() if code else out.getvalue()

def metrics(out): return json.loads((out/'metrics.json').read_text())
def lines(path): return [json.loads(l) for l in path.read_text().splitlines()]

timed = 'tokens_per_s', 'tflops', 'memory_gb'                   # what two runs of the same thing need not have in common
def untimed(row): return {k: v for k,v in row.items() if k not in timed}
def log(out): return [untimed(row) for row in lines(out/'log.jsonl')]
def figures(out): return untimed(metrics(out))
