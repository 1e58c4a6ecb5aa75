"""lmft beside 🤗 Trainer, TRL and a raw torch loop on the same model and data: each in a process of its own, taking turns.

    make bench          # or: python bench/run.py [--runs 5] [--only SFT] [--out bench/results/cpu.json]

A round runs every contestant once, from the same weights, over the same data. Machines are faster in one minute than in the
next, so speeds are compared within a round, and the median over the rounds is reported. The speed is that of the training
loop alone; `cpu_s` are its seconds on all cores, `process_s` is the whole process with imports, tokenising and start, and
`peak_mib` the memory beyond what it held before the model was made. Only ratios within one run mean something. Needs
`pip install -e .[dev]`, and `LMFT_DATA` (README, "Real data") for the instructions; takes about 40 minutes on two cores.
"""
import argparse, json, os, platform, random, statistics, subprocess, sys, tempfile, time
from importlib.metadata import version
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here))
import torch
from contestants import LARGE, SMALL, benches

from lmft.data.messages import to_messages
from lmft.data.tokenizers import train_tokenizer
from lmft.core import atomic_write
from lmft.data.records import read_records

words = 'cat dog sun rain tree house river stone bread apple green small old warm slow runs sees likes sleeps falls'.split()

def write_jsonl(rows, path): path.write_text(''.join(json.dumps(r)+'\n' for r in rows))

def write_pairs(folder, n=48):
    "Questions of 8 to 40 words with two answers of 4 to 60"
    rng = random.Random(0)
    def text(a, b): return ' '.join(rng.choices(words, k=rng.randint(a, b)))
    write_jsonl([dict(prompt=text(8, 40), chosen=text(4, 60), rejected=text(4, 60)) for _ in range(n)], folder/'pairs.jsonl')
    train_tokenizer([' '.join(words)], 600).save_pretrained(folder/'dpo')

def write_instructions(data, folder, n=160):
    "Real instructions of mixed length as conversations, and a tokenizer for them"
    files = sorted((Path(data)/'instruct').glob('g*.jsonl'))
    talks = [to_messages(r) for f in files for r in read_records([f])]
    train_tokenizer([m['content'] for t in talks for m in t], 4096).save_pretrained(folder)
    write_jsonl([dict(messages=t) for t in random.Random(0).sample(talks, n)], folder/'instructions.jsonl')

def one(bench, who, folder, *how):
    "The result of one contestant in a new process"
    start = time.perf_counter()
    args = [sys.executable, str(here/'contestants.py'), bench, who, str(folder), *how]
    p = subprocess.run(args, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    if p.returncode: raise SystemExit(f'{bench}, {who}:\n{p.stderr[-2000:]}')
    return dict(json.loads(p.stdout.splitlines()[-1]), process_s=time.perf_counter()-start)

def compare(bench, folder, runs):
    "Rows of medians over rounds in which all contestants take turns; the first one is ours, and compared within a round"
    got = {who: [] for who in benches[bench]}
    for _ in range(runs):
        for who in got: got[who].append(one(bench, who, folder))
    def middle(who, k): return statistics.median(r[k] for r in got[who]) if got[who][0][k] is not None else None
    speed = {who: [r['done']/r['seconds'] for r in rs] for who,rs in got.items()}
    ours = next(iter(got))
    def ratios(who): return [a/b for a,b in zip(speed[ours], speed[who])]
    rows = [dict(bench=bench, who=who, per_s=statistics.median(speed[who]), **{k: middle(who, k) for k in rs[0]},
                 all_seconds=[r['seconds'] for r in rs], all_ratios=ratios(who), lmft_speed_over_it=statistics.median(ratios(who)),
                 cpu_of_lmft=statistics.median(a['cpu_s']/b['cpu_s'] for a,b in zip(got[ours], rs))) for who,rs in got.items()]
    for r in rows:
        print(f"{bench:28}{r['who']:18}{r['per_s']:10.1f} a second  {r['process_s']:6.1f} s in all  {r['peak_mib'] or 0:7.0f} MiB"
              f"   lmft has {r['lmft_speed_over_it']:.2f} x its speed, {r['cpu_of_lmft']:.2f} x its CPU time", flush=True)
    return rows

def targets(rows):
    "What was to be reached, and what was, with the rounds: each a function that gives the figure of every round"
    found = {(r['bench'], r['who']): r for r in rows}
    def faster(bench, who): return found[bench, who]['all_ratios']
    def slower(bench, who): return [1/x for x in faster(bench, who)]
    def peak(): return [found['loss at vocabulary 128k', 'lmft']['peak_mib']/found['loss at vocabulary 128k', 'HF default']['peak_mib']]
    def saving(): return [(r := found['checkpoints', 'every 100 steps'])['saving']/(r['seconds']-r['saving'])]
    def held():
        ours,its = (found['pretraining a 4x256 model', w]['peak_mib'] for w in ('lmft', 'HF Trainer'))
        return [ours/its]
    wanted = [('SFT on mixed lengths: speed over TRL', lambda: faster('SFT on mixed lengths', 'TRL'), '>=', 3.),
              ('SFT on mixed lengths: speed over TRL by length', lambda: faster('SFT on mixed lengths', 'TRL, by length'), '>=', 2.2),
              ('pretraining a 4x256 model: speed over HF Trainer', lambda: faster('pretraining a 4x256 model', 'HF Trainer'), '>=', 1.3),
              ('pretraining a 4x256 model: memory over HF Trainer', held, '<=', 1.),
              ('a step of a 4x64 model: time over a raw loop', lambda: slower('a step of a 4x64 model', 'raw loop'), '<=', 1.15),
              ('classification: speed over HF Trainer by length', lambda: faster('classification', 'HF Trainer, by length'), '>=', 1.3),
              ('generation: speed over 🤗 generate', lambda: faster('generation', '🤗 generate'), '>=', 1.5),
              ('loss at vocabulary 128k: time over HF default', lambda: slower('loss at vocabulary 128k', 'HF default'), '<=', .2),
              ('loss at vocabulary 128k: memory over HF default', peak, '<=', .1),
              ('DPO, full: speed over TRL by length', lambda: faster('DPO, full', 'TRL, by length'), '>=', 2.),
              ('a GRPO step: speed over TRL', lambda: faster('GRPO', 'TRL'), '>=', 1.3),
              ('checkpoints: time for one every 100 steps', saving, '<=', .03)]
    def measured(f):
        try: return f()
        except (KeyError, TypeError): return None                       # that bench was left out
    def row(what, xs, rel, t):
        m = statistics.median(xs)
        return dict(what=what, lowest=min(xs), measured=m, highest=max(xs), relation=rel, target=t, reached=m>=t if rel=='>=' else m<=t)
    return [row(w, xs, rel, t) for w,f,rel,t in wanted if (xs := measured(f)) is not None]

def save(out, found):
    "The results with the hardware and the versions they belong to"
    info = Path('/proc/cpuinfo')
    cpu = next((l.split(':')[1].strip() for l in info.open() if 'model name' in l), '') if info.exists() else platform.processor()
    versions = {k: version(k) for k in ('lmft', 'torch', 'transformers', 'fastai', 'trl', 'peft')}
    with atomic_write(out) as f:
        json.dump(dict(found, cpu=cpu, threads=torch.get_num_threads(), python=platform.python_version(), versions=versions), f, indent=1)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=5, help='rounds (default: 5)')
    p.add_argument('--only', default='', help='benches whose name has this in it; the rows of others stay as --out has them')
    p.add_argument('--out', default=here/'results'/'cpu.json', help='file for the results')
    o = p.parse_args()
    names = [b for b in benches if o.only in b]
    with tempfile.TemporaryDirectory() as tmp:
        folder,data = Path(tmp),os.environ.get('LMFT_DATA')
        write_pairs(folder)
        if data: write_instructions(data, folder)
        else:
            names = [b for b in names if 'SFT' not in b]
            print('LMFT_DATA is not set: SFT on instructions is left out')
        start,found = time.perf_counter(),dict(rows=[], shares={}, small=SMALL, large=LARGE)
        if o.only and Path(o.out).exists():
            before = json.loads(Path(o.out).read_text())
            found |= dict(rows=[r for r in before['rows'] if r['bench'] not in names], shares=before['shares'])
            start -= 60*before['minutes']
        for b in names:                                           # kept after each: the whole takes a while
            found['rows'] += compare(b, folder, o.runs*(1+(b==next(iter(benches)))))           # the shortest scatters most
            if b in [*benches][:3]: found['shares'][b] = one(b, 'lmft', folder, 'profile')['shares']
            found['rows'].sort(key=lambda r: [*benches].index(r['bench']))
            save(o.out, dict(found, targets=targets(found['rows']), runs=o.runs, minutes=(time.perf_counter()-start)/60))
    for t in targets(found['rows']):
        print(f"{t['what']:52}{t['measured']:8.3f} ({t['lowest']:.3f} to {t['highest']:.3f})  {t['relation']} {t['target']}  {'reached' if t['reached'] else 'NOT reached'}")

if __name__=='__main__': main()
