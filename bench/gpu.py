"""The same comparison on one CUDA GPU, at sizes that are used: `python bench/gpu.py [--out bench/results/gpu.json]`.

GPT-2 of 124 million parameters is pretrained, and Qwen3-shaped models of 0.6 and 1.7 billion are tuned, in full and with
LoRA, on rows of random tokens, with random weights: speed and memory do not depend on what they are. bfloat16 autocast
everywhere. Each library also with compilation. MFU is `lmft.train.callbacks.step_flops` of a step, for all alike, over its seconds
and over the peak of the device in bfloat16.
NOT YET RUN: it was written where there is no GPU.
"""
import argparse, json, os, statistics, subprocess, sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch
import transformers
from contestants import attention, hf_args, timed

from lmft.train.callbacks import peak_flops, step_flops

qwen = dict(num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=151_936, tie_word_embeddings=True)
shapes = {'GPT-2 124M': lambda: transformers.GPT2Config(),
          'Qwen3 0.6B': lambda: transformers.Qwen3Config(hidden_size=1024, intermediate_size=3072, **qwen),
          'Qwen3 1.7B': lambda: transformers.Qwen3Config(hidden_size=2048, intermediate_size=6144, **qwen)}
jobs = [('GPT-2 124M', 'full', 16, 1024), ('Qwen3 0.6B', 'full', 8, 1024), ('Qwen3 0.6B', 'lora', 8, 1024),
        ('Qwen3 1.7B', 'full', 4, 1024), ('Qwen3 1.7B', 'lora', 4, 1024)]
steps = 30

def model_of(shape, method):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(shapes[shape](), dtype=torch.float32)
    if method=='full': return model.cuda()
    from peft import LoraConfig, get_peft_model
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=list(attention), task_type='CAUSAL_LM')).cuda()

def lmft(model, ids, bs, compiled=False):
    "With the loss for big vocabularies, as the commands choose it"
    from lmft.data.loaders import lm_dls
    from lmft.train.callbacks import mixed_precision
    from lmft.train.learner import lm_learner
    from lmft.train.speed import compile_blocks, loss_cbs
    if compiled: compile_blocks(model)
    exs = [dict(input_ids=r, labels=r) for r in ids]
    learn = lm_learner(lm_dls(exs, exs[:1], None, ids.shape[1], bs=bs, device='cuda'), model, cbs=mixed_precision('bf16'))
    learn.add_cbs(loss_cbs(learn))
    learn.dls.loaders[1] = []
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(1)

def peer(trl, compiled=False):
    def train(model, ids, bs):
        from datasets import Dataset
        if trl: from trl import SFTConfig as Config, SFTTrainer as Trainer
        else: from transformers import Trainer, TrainingArguments as Config
        rows,kw = ids.tolist(),dict(use_cpu=False, bf16=True, num_train_epochs=1)
        more = dict(max_length=None) if trl else {}
        args = hf_args(bs, Config, torch_compile=compiled, **kw, **more)
        tok = dict(processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=_no_tokenizer(), pad_token='0', eos_token='1')) if trl else {}
        Trainer(model, args, train_dataset=Dataset.from_dict(dict(input_ids=rows, labels=rows)), **tok).train()
    return train

def _no_tokenizer():
    from tokenizers import Tokenizer, models
    return Tokenizer(models.WordLevel({'0': 0, '1': 1}, '0'))

contestants = {'lmft': lmft, 'lmft, compiled': partial(lmft, compiled=True), 'HF Trainer': peer(False),
               'HF Trainer, compiled': peer(False, True), 'TRL': peer(True), 'TRL, compiled': peer(True, True)}

def one(shape, method, bs, seq_len, who):
    "Tokens a second after a warm-up, memory and MFU; `None` where memory does not suffice"
    model = model_of(shape, method)
    flops = step_flops(model, bs*seq_len, bs*(seq_len-1), seq_len)/(bs*seq_len)                                      # of a token
    ids = torch.randint(9, 50_000, (steps*bs, seq_len))
    try:
        contestants[who](model, ids[:3*bs], bs)
        torch.cuda.reset_peak_memory_stats()
        def train():
            contestants[who](model, ids, bs)
            torch.cuda.synchronize()
        speed = ids.numel()/timed(train)
    except torch.cuda.OutOfMemoryError: return dict(tokens_per_s=None, peak_gib=None, mfu=None)
    peak = peak_flops(torch.device('cuda'), 'bf16')
    return dict(tokens_per_s=speed, peak_gib=torch.cuda.max_memory_allocated()/2**30, mfu=peak and flops*speed/peak)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--runs', type=int, default=3, help='rounds (default: 3)')
    p.add_argument('--out', default=Path(__file__).parent/'results'/'gpu.json', help='file for the results')
    p.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    o = p.parse_args()
    if not torch.cuda.is_available(): raise SystemExit('bench/gpu.py needs a CUDA GPU')
    if o.one:
        out,sys.stdout = sys.stdout,open(os.devnull, 'w')
        return print(json.dumps(one(*jobs[int(o.one[0])], o.one[1])), file=out)
    rows = []
    for i,(shape,method,bs,seq_len) in enumerate(jobs):
        got = {who: [] for who in contestants}
        for _ in range(o.runs):
            for who in got:
                out = subprocess.run([sys.executable, __file__, '--one', str(i), who], capture_output=True, text=True)
                if out.returncode: raise SystemExit(f'{shape}, {method}, {who}:\n{out.stderr[-2000:]}')
                got[who].append(json.loads(out.stdout.splitlines()[-1]))
        for who,rs in got.items():
            middle = {k: statistics.median(r[k] for r in rs) if rs[0][k] is not None else None for k in rs[0]}
            rows.append(dict(model=shape, method=method, bs=bs, seq_len=seq_len, who=who, **middle))
            print(rows[-1], flush=True)
    Path(o.out).write_text(json.dumps(dict(rows=rows, device=torch.cuda.get_device_name(), runs=o.runs,
                                           versions={k: version(k) for k in ('lmft', 'torch', 'transformers', 'trl')}), indent=1))

if __name__=='__main__': main()
