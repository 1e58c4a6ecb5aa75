"""Memory of `lmft pretrain` by the size of its text, and of the same text in lists.

    python bench/memory.py [--mb 30 100 300] [--kinds txt jsonl lists] [--out bench/results/memory.json]

Each run is a process of its own on text of that size, generated from the tiny world: `txt` is one long text, `jsonl`
many short documents, `lists` the same documents through `clm_examples`. Ten steps are trained, so that every part has
run; the held-out text is a small file. Measured every 20 ms: `RssAnon`, what the process holds itself, and `RssFile`,
pages of mapped files, which the kernel takes back when it needs room. Linux only. Sizes already in --out are kept.
"""
import argparse, itertools, json, os, re, subprocess, sys, tempfile, time
from pathlib import Path

from lmft.core import atomic_write

train = 'import sys; from lmft.cli import main; sys.exit(main(sys.argv[1:]))'
lists = """import sys
from lmft.data.examples import clm_examples
from lmft.data.loaders import lm_dls
from lmft.data.tokenizers import train_tokenizer
from lmft.data.records import read_records
train,valid = (list(read_records(p)) for p in sys.argv[1:3])
tok = train_tokenizer((r['text'] for r in valid), 1024)
lm_dls(clm_examples(train, tok, 256), clm_examples(valid, tok, 256), tok, 256).train.one_batch()"""

def write_text(path, n_bytes):
    "Numbered documents of the tiny world, `n_bytes` of them"
    from lmft.world.documents import corpus
    from lmft.world.facts import World
    docs,n = [d['text'] for d in corpus(World(0), 300_000)],0
    with open(path, 'w') as f:
        for i in itertools.count():
            text = f'{i}. {docs[i%len(docs)]} {i*7919%100_003}'
            n += f.write((json.dumps(dict(text=text)) if path.suffix=='.jsonl' else text+'\n')+'\n')
            if n>=n_bytes: return

def peaks(argv, **env):
    "Largest RssAnon and RssFile of a process, in MB, and its seconds"
    child,most,start = subprocess.Popen([sys.executable, '-c', *argv], env={**os.environ, **env}),{},time.time()
    while child.poll() is None:
        try: status = Path(f'/proc/{child.pid}/status').read_text()
        except OSError: break
        for k,v in re.findall(r'(RssAnon|RssFile):\s+(\d+)', status): most[k] = max(most.get(k, 0), int(v)*1024//10**6)
        time.sleep(.02)
    if child.wait(): sys.exit(f'the command failed: {argv}')
    return dict(anon_mb=most['RssAnon'], file_mb=most['RssFile'], seconds=round(time.time()-start))

def measure(kind, mb):
    "One run, all its files removed afterwards"
    with tempfile.TemporaryDirectory() as tmp:
        text,valid = (Path(tmp)/f"{name}.{'txt' if kind=='txt' else 'jsonl'}" for name in ('text', 'valid'))
        write_text(text, mb*10**6)
        write_text(valid, 10**5)
        command = ['pretrain', '--data', text, '--valid', valid, '--out', f'{tmp}/out', '--vocab_size', 1024, '--bs', 4,
                   '--max_steps', 10]
        argv = [lists, text, valid] if kind=='lists' else [train, *command]
        found = peaks([str(a) for a in argv], LMFT_CACHE=tmp+'/cache')
        return dict(kind=kind, mb=mb, **found, disk_mb=sum(p.stat().st_size for p in Path(tmp).glob('cache/*/*'))//10**6)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mb', type=int, nargs='+', default=[30, 100, 300], help='sizes of the text in MB')
    parser.add_argument('--kinds', nargs='+', default=['txt', 'jsonl', 'lists'])
    parser.add_argument('--out', type=Path, default=Path('bench/results/memory.json'))
    o = parser.parse_args()
    rows = json.loads(o.out.read_text())['rows'] if o.out.exists() else []
    for kind,mb in itertools.product(o.kinds, o.mb):
        if any((r['kind'], r['mb'])==(kind, mb) for r in rows): continue
        rows.append(measure(kind, mb))
        print(rows[-1], flush=True)
        with atomic_write(o.out) as f: json.dump(dict(command=' '.join(['python', *sys.argv]), rows=rows), f, indent=1)

if __name__=='__main__': main()
