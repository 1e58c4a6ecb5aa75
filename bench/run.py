"""lmft beside HF Trainer, TRL and a raw torch loop on the same model and data, in one process, taking turns.

    python bench/run.py [--runs 3] [--out bench/results/cpu.json]

Each contestant trains the same number of steps from the same weights; a round runs all of them, and the median over
rounds is compared. Times are of the training loop alone: no import, no tokenising. Only ratios within one run mean
something on a CPU; needs `pip install -e .[dev]`, and `LMFT_DATA` (README, "Real data") for the instructions.
"""
import argparse, json, os, platform, statistics, sys, tempfile, time, warnings
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings('ignore')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lmft.batches import lm_dls, fit_length, sft_examples, to_messages, train_tokenizer
from lmft.callbacks import JsonLines, StepLog, mixed_precision
from lmft.core import atomic_write, set_seed
from lmft.learner import lm_learner
from lmft.records import read_records

transformers.utils.logging.set_verbosity_error()

def llama(width, vocab, depth=4, heads=4):
    "A Llama with `depth` blocks of `width`, always the same weights"
    set_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=width, intermediate_size=width*11//4, num_hidden_layers=depth,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None))

def timed(train):
    "Seconds that `train()` takes"
    start = time.perf_counter()
    train()
    return time.perf_counter()-start

def ours(model, dls, steps, cbs=()):
    "`lm_learner` with its default callbacks; tokens and seconds"
    log = StepLog(10, [JsonLines(Path(tempfile.mkdtemp())/'log.jsonl')])
    learn = lm_learner(dls, model, cbs=[log, *cbs])
    learn.dls.loaders[1] = []                                 # no validation: the others have none
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(steps=steps)
    assert learn.train_iter==steps
    return log.rows[-1]['tokens'], log.seconds

def hf_args(bs, steps, cls=TrainingArguments, **kwargs):
    "fp32 on the CPU, nothing saved, nothing reported"
    return cls(tempfile.mkdtemp(), per_device_train_batch_size=bs, max_steps=steps, use_cpu=True, bf16=False, fp16=False, report_to='none',
               save_strategy='no', logging_steps=10, disable_tqdm=True, gradient_checkpointing=False, learning_rate=1e-3, **kwargs)

def hf_train(trainer):
    "Run a 🤗 trainer; useful (unpadded) tokens and seconds"
    seen = []
    def count(m, args, kwargs):
        mask = kwargs.get('attention_mask')
        seen.append(kwargs['input_ids'].numel() if mask is None else int(mask.sum()))
    with trainer.model.register_forward_pre_hook(count, with_kwargs=True):
        sys.stdout,out = open(os.devnull, 'w'),sys.stdout
        try: seconds = timed(trainer.train)
        finally: sys.stdout = out
    return sum(seen), seconds

def raw(model, batches, steps):
    "The shortest honest loop in torch: fused AdamW, clipping, all logits"
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()
    def train():
        for i in range(steps):
            ids = batches[i%len(batches)]
            logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[:,:-1].flatten(0, 1), ids[:,1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            opt.step()
            opt.zero_grad()
            loss.item()
    return steps*batches[0].numel(), timed(train)

def blocks(n, bs, seq_len, vocab):
    "Random tokens as full rows: examples for lmft, rows for 🤗, batches for the raw loop"
    set_seed(1)
    ids = torch.randint(9, vocab, (n*bs, seq_len))
    return [dict(input_ids=r, labels=r) for r in ids], Dataset.from_dict(dict(input_ids=ids.tolist(), labels=ids.tolist())), list(ids.split(bs))

def same_blocks(width, vocab, bs, seq_len, steps):
    "Contestants on full rows of random tokens"
    exs,rows,batches = blocks(steps, bs, seq_len, vocab)
    dls = lm_dls(exs, exs[:1], None, seq_len, bs=bs)
    return {'lmft': lambda: ours(llama(width, vocab), dls, steps), 'lmft pretrain': lambda: ours(llama(width, vocab), dls, steps, mixed_precision('fp32')),
            'HF Trainer': lambda: hf_train(Trainer(llama(width, vocab), hf_args(bs, steps), train_dataset=rows)),
            'raw loop': lambda: raw(llama(width, vocab), batches, steps)}

def instructions(data, bs, seq_len, steps):
    "Contestants on real instructions of mixed length; TRL with its usual padding and with its packing"
    from trl import SFTConfig, SFTTrainer
    files = sorted((Path(data)/'instruct').glob('g*.jsonl'))
    records = [r for f in files for r in read_records([f])]
    tok = train_tokenizer([m['content'] for r in records for m in to_messages(r)], 4096)
    exs,_,_ = fit_length(sft_examples(records, tok), seq_len)
    dls = lm_dls(exs, exs[:1], tok, seq_len, bs=bs)
    by_len = lm_dls(exs, exs[:1], tok, seq_len, bs=bs, packed=False)
    rows = Dataset.from_list([dict(prompt=m[:-1], completion=m[-1:]) for m in map(to_messages, records)])
    def trl(packing):
        args = hf_args(bs, steps, SFTConfig, max_length=seq_len, packing=packing, dataset_num_proc=1)
        return hf_train(SFTTrainer(llama(256, 4096), args=args, train_dataset=rows, processing_class=tok))
    def model(): return llama(256, 4096)
    return {'lmft (packed)': lambda: ours(model(), dls, steps), 'lmft (padded, by length)': lambda: ours(model(), by_len, steps),
            'TRL': lambda: trl(False), 'TRL (packed)': lambda: trl(True)}

def compare(name, contestants, runs):
    "Rows of medians over `runs` rounds in which all take turns"
    got = {k: [] for k in contestants}
    for _ in range(runs):
        for k,f in contestants.items():
            tokens,seconds = f()
            got[k].append((tokens/seconds, seconds, tokens))
    rows = [dict(bench=name, who=k, tokens_per_s=statistics.median(v[0] for v in vs), seconds=statistics.median(v[1] for v in vs),
                 tokens=vs[0][2]) for k,vs in got.items()]
    first = rows[0]['tokens_per_s']
    for r in rows:
        r['first_is_faster_by'] = first/r['tokens_per_s']
        print(f"{name:34}{r['who']:26}{r['tokens_per_s']:10.0f} tokens/s   lmft is {r['first_is_faster_by']:.2f} x as fast", flush=True)
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=3, help='rounds (default: 3)')
    p.add_argument('--out', default='bench/results/cpu.json', help='file for the results')
    o = p.parse_args()
    rows = compare('step of a 4x64 model', same_blocks(64, 512, 4, 32, 150), o.runs)
    rows += compare('pretraining a 4x256 model', same_blocks(256, 4096, 8, 256, 8), o.runs)
    if data:=os.environ.get('LMFT_DATA'): rows += compare('tuning on mixed instructions', instructions(data, 8, 512, 8), o.runs)
    else: print('LMFT_DATA is not set: tuning on instructions is left out')
    libs = {lib: version(lib) for lib in ('lmft', 'torch', 'transformers', 'fastai', 'trl')}
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if 'model name' in l), platform.processor()) if Path('/proc/cpuinfo').exists() else platform.processor()
    with atomic_write(o.out) as f: json.dump(dict(rows=rows, versions=libs, python=platform.python_version(), cpu=cpu, threads=torch.get_num_threads(), runs=o.runs), f, indent=1)

if __name__=='__main__': main()
