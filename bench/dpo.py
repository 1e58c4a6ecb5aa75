"""DPO in lmft beside TRL on the same pairs and weights, in one process, taking turns.

    python bench/dpo.py [--runs 3] [--out bench/results/dpo.json]

A 4x256 Llama in float32; the reference's log-probabilities are computed beforehand on both sides, which is TRL's
fastest way, and are not timed. Pairs differ in length as answers do. Only ratios within one run mean something on a
CPU; needs `pip install -e .[dev]`.
"""
import argparse, json, os, platform, random, statistics, sys, tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault('HF_HUB_OFFLINE', '1')
from run import hf_args, llama, timed
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from lmft.batches import train_tokenizer
from lmft.core import atomic_write, set_seed
from lmft.preferences import dpo_dls, dpo_learner

words = 'cat dog sun rain tree house river stone bread apple green small old warm slow runs sees likes sleeps falls'.split()

def pairs(n):
    "Questions of 8 to 40 words with two answers of 4 to 60"
    rng = random.Random(0)
    def text(a, b): return ' '.join(rng.choices(words, k=rng.randint(a, b)))
    return [dict(prompt=text(8, 40), chosen=text(4, 60), rejected=text(4, 60)) for _ in range(n)]

def conversation(r):
    "A pair as TRL reads conversations"
    return {k: [dict(role='user' if k=='prompt' else 'assistant', content=r[k])] for k in ('prompt', 'chosen', 'rejected')}

def ours(rows, tok, bs, method):
    "Seconds of one epoch, and the last loss"
    learn = dpo_learner(dpo_dls(rows, rows[:bs], tok, bs=bs), llama(256, 4096), method, lr=1e-4)
    learn.dls.loaders[1] = []
    with learn.no_bar(), learn.no_logging(): return timed(lambda: learn.fit_cos(1))

def trl(rows, tok, bs, method):
    "The same with TRL; its LoRA takes the same matrices"
    from peft import LoraConfig
    from lmft.models import attention_layers
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=attention_layers, task_type='CAUSAL_LM') if method=='lora' else None
    args = hf_args(bs, -1, DPOConfig, num_train_epochs=1, max_length=None, precompute_ref_log_probs=True,
                   precompute_ref_batch_size=bs)
    trainer = DPOTrainer(llama(256, 4096), args=args, train_dataset=Dataset.from_list([conversation(r) for r in rows]),
                         processing_class=tok, peft_config=lora)
    sys.stdout,out = open(os.devnull, 'w'),sys.stdout
    try: return timed(trainer.train)
    finally: sys.stdout = out

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=3, help='rounds (default: 3)')
    p.add_argument('--pairs', type=int, default=64, help='pairs of one epoch (default: 64)')
    p.add_argument('--out', default='bench/results/dpo.json', help='file for the results')
    o = p.parse_args()
    rows,table = pairs(o.pairs),[]
    tok = train_tokenizer([' '.join(words)], 600)
    for method in ('full', 'lora'):
        contestants = {'lmft': lambda: ours(rows, tok, 8, method), 'TRL': lambda: trl(rows, tok, 8, method)}
        got = {k: [] for k in contestants}
        for _ in range(o.runs):
            for k,f in contestants.items(): got[k].append(o.pairs/f())
        mine = statistics.median(got['lmft'])
        for k,v in got.items():
            table.append(dict(method=method, who=k, pairs_per_s=statistics.median(v), lmft_is_faster_by=mine/statistics.median(v)))
            print(f"{method:6}{k:30}{table[-1]['pairs_per_s']:8.1f} pairs/s   lmft is {table[-1]['lmft_is_faster_by']:.2f} x as fast", flush=True)
    libs = {lib: version(lib) for lib in ('lmft', 'torch', 'transformers', 'trl')}
    with atomic_write(o.out) as f: json.dump(dict(rows=table, versions=libs, python=platform.python_version(), runs=o.runs, pairs=o.pairs,
                                                 threads=torch.get_num_threads()), f, indent=1)

if __name__=='__main__': main()
