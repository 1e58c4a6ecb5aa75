"""One contestant of one bench, in a process of its own: `python bench/contestants.py BENCH WHO FOLDER`.

`run.py` starts these. The last line of the output is JSON: what was done (tokens or pairs), the seconds of the training
loop alone, and how much memory the process took beyond what it held before the model was made. Nobody imports what another
one needs.
"""
import json, os, sys, tempfile, time, warnings
from pathlib import Path

warnings.filterwarnings('ignore')
os.environ |= dict(HF_HUB_OFFLINE='1', KINETO_LOG_LEVEL='99')
import torch
import torch.nn.functional as F
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
SMALL,LARGE = dict(width=64, vocab=512, bs=4, seq_len=32, steps=600), dict(width=256, vocab=4096, bs=8, seq_len=256, steps=12)

def llama(width, vocab, depth=4, heads=4, **more):
    "A Llama with `depth` blocks of `width`, always the same weights"
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=width, intermediate_size=width*11//4, num_hidden_layers=depth,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None, **more))

def timed(train):
    "Seconds that `train()` takes; those of all cores are left in `timed.cpu`"
    start,cpu = time.perf_counter(),time.process_time()
    train()
    timed.cpu = time.process_time()-cpu
    return time.perf_counter()-start

# ---------- lmft

def lmft_fit(model, dls, cbs=(), make=None, **fit):
    "A learner with the callbacks of the commands and a log; tokens and seconds"
    from lmft.train.callbacks import JsonLines, StepLog, mixed_precision
    from lmft.train.learner import lm_learner
    from lmft.train.speed import loss_cbs
    log = StepLog(10, [JsonLines(Path(tempfile.mkdtemp())/'log.jsonl')])
    learn = (make or lm_learner)(dls, model, cbs=[log, *mixed_precision('fp32'), *cbs])
    learn.add_cbs(loss_cbs(learn))
    learn.dls.loaders[1] = []                                 # no validation: the others have none
    with learn.no_bar(), learn.no_logging(): seconds = timed(lambda: learn.fit_cos(**fit))
    return log.history[-1]['tokens'], seconds

def blocks(vocab, bs, seq_len, steps):
    "Random tokens as full rows"
    torch.manual_seed(1)
    return torch.randint(9, vocab, (steps*bs, seq_len))

def lmft_blocks(folder, width, vocab, bs, seq_len, steps):
    import lmft.train.callbacks                                     # before memory is looked at
    from lmft.data.loaders import lm_dls
    exs = [dict(input_ids=r, labels=r) for r in blocks(vocab, bs, seq_len, steps)]
    dls = lm_dls(exs, exs[:1], None, seq_len, bs=bs)
    return lambda: lmft_fit(llama(width, vocab), dls, steps=steps)

def lmft_sft(folder, packed=False, by_length=True, all_logits=False):
    import lmft.train.callbacks
    from lmft.train import speed
    from lmft.data.examples import fit_length, sft_examples
    from lmft.data.loaders import lm_dls
    from lmft.data.tokenizers import load_tokenizer
    from lmft.models.wrapper import HFModel
    from lmft.data.records import read_records
    tok = load_tokenizer(folder)
    exs,_,_ = fit_length(sft_examples(read_records([folder/'instructions.jsonl']), tok), 512)
    dls = lm_dls(exs, exs[:1], tok, 512, bs=8, packed=packed)
    dls.train.by_length = by_length and dls.train.by_length
    if all_logits: HFModel._logits,speed.loss_cbs = (lambda self, b, loss_mask: self.hf(**b).logits[loss_mask]),(lambda learn: [])
    return lambda: lmft_fit(llama(256, 4096), dls, n_epoch=1)

def lmft_dpo(folder, method):
    from lmft.data.tokenizers import load_tokenizer
    from lmft.stages.pairs import dpo_dls
    from lmft.stages.preferences import dpo_from_dls
    tok,rows = load_tokenizer(folder/'dpo'),read_pairs(folder)
    dls = dpo_dls(rows, rows[:8], tok, bs=8)
    def train():
        learn = dpo_from_dls(dls, llama(256, 4096), method, lr=1e-4)
        learn.dls.loaders[1] = []
        with learn.no_bar(), learn.no_logging(): return len(rows), timed(lambda: learn.fit_cos(1))
    return train

GRPO = dict(rounds=10, n=32, group=4, tokens=48)                # answers of a round, answers to a prompt, tokens of an answer

def bert():
    "A BERT of 4 blocks of 256 for two classes, always the same weights"
    from transformers import BertConfig, BertForSequenceClassification
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=4096, hidden_size=256, num_hidden_layers=4,
        num_attention_heads=4, intermediate_size=704, max_position_embeddings=512, pad_token_id=0, num_labels=2))

def texts():
    "Token ids of texts of 4 to 300 tokens, most of them short, and a class for each"
    g = torch.Generator().manual_seed(1)
    sizes = (torch.randn(320, generator=g)*.8+3.5).exp().clamp(4, 300).long().tolist()
    return [dict(input_ids=torch.randint(9, 4096, (n,), generator=g), label=i%2) for i,n in enumerate(sizes)]

def lmft_classes(folder):
    import lmft.train.callbacks
    from fastai.data.core import DataLoaders
    from lmft.stages.finetuning import ClassDL, labelled_example, tune_learner
    class Pad: pad_token_id = eos_token_id = sep_token_id = 0
    rows = [[dict(labelled_example(t['input_ids'].tolist(), {len(t['input_ids'])-1: t['label']}), target=torch.tensor(t['label']))] for t in texts()]
    kw = dict(tok=Pad(), vocab=('0', '1'), bs=16, by_length=True)
    dls = DataLoaders(ClassDL(rows, shuffle=True, **kw), ClassDL(rows[:1], **kw), device=torch.device('cpu'))
    return lambda: lmft_fit(bert(), dls, make=tune_learner, n_epoch=1)

def lmft_answers(folder):
    from lmft.generation import sample_ids, sampling_config
    model,tok,rows = asked(folder)
    def generate(n=ANSWERS['tokens']): return sample_ids(model, tok, rows, sampling_config(model, tok, max(map(len, rows)), n))
    generate(2)                                                                       # whatever is done once, on both sides
    return lambda: answered(model, rows, generate)

def lmft_grpo(folder):
    "GRPO as published: the KL in the loss, one update a round"
    from fastai.callback.core import Callback
    from lmft.data.tokenizers import load_tokenizer
    from lmft.stages.ppo import ppo_from_prompts
    tok,g = load_tokenizer(folder/'dpo'),GRPO
    prompts = [r['prompt'] for r in read_pairs(folder)]
    def train():
        learn = ppo_from_prompts(llama(256, 4096), tok, prompts, vowels, 'full', n=g['n'], group=g['group'], bs=g['n'], num_ppo_epochs=1, lr=1e-4,
                                 advantage='grpo', kl_in='loss', kl_estimator='k3', max_new_tokens=g['tokens'], missing_eos_penalty=0.)
        class Clock(Callback):
            def after_epoch(self): self.at = time.perf_counter(),time.process_time()
        start,clock = (time.perf_counter(),time.process_time()),Clock()
        with learn.no_bar(), learn.no_logging(): learn.fit_cos(g['rounds'], cbs=clock)           # at its end the first prompts are answered again: no step
        seconds,timed.cpu = (a-b for a,b in zip(clock.at, start))
        return g['rounds']*g['n'], seconds, dict(length=learn.rollouts.history[0]['length'])
    return train

def vowels(prompts, answers): return [sum(c in 'aeiou' for c in a)/(1+len(a)) for a in answers]

def lmft_saving(folder, every):
    "Training with a checkpoint every `every` steps: what is done is a step, and the seconds of saving are told apart"
    from lmft.data.loaders import lm_dls
    from lmft.train.checkpoints import Checkpoint
    exs = [dict(input_ids=r, labels=r) for r in blocks(4096, 8, 128, 200)]
    dls = lm_dls(exs, exs[:1], None, 128, bs=8)
    class Timed(Checkpoint):
        saving = 0.
        def save(self): self.saving += timed(super().save)
        def before_fit(self): self.saving += timed(super().before_fit)
    def train():
        cb = Timed(Path(tempfile.mkdtemp()), every)
        seconds = lmft_fit(llama(144, 4096), dls, [cb] if every else [], steps=200)[1]
        return 200, seconds, dict(saving=cb.saving)
    return train

# ---------- 🤗 Trainer and TRL

def hf_args(bs, cls=None, **kwargs):
    "fp32 on the CPU unless told otherwise; nothing saved, nothing reported"
    kwargs = dict(use_cpu=True, bf16=False, fp16=False) | kwargs
    return (cls or transformers.TrainingArguments)(tempfile.mkdtemp(), per_device_train_batch_size=bs, report_to='none', save_strategy='no',
        logging_steps=10, disable_tqdm=True, gradient_checkpointing=False, learning_rate=1e-3, **kwargs)

def hf_train(trainer):
    "Run a 🤗 trainer; useful (unpadded) tokens and seconds"
    seen = []
    def count(m, args, kwargs):
        mask = kwargs.get('attention_mask')
        seen.append(kwargs['input_ids'].numel() if mask is None else int(mask.sum()))
    with trainer.model.register_forward_pre_hook(count, with_kwargs=True): seconds = timed(trainer.train)
    return sum(seen), seconds

def hf_blocks(folder, width, vocab, bs, seq_len, steps):
    from datasets import Dataset
    from transformers import Trainer
    ids = blocks(vocab, bs, seq_len, steps).tolist()
    rows = Dataset.from_dict(dict(input_ids=ids, labels=ids))
    return lambda: hf_train(Trainer(llama(width, vocab), hf_args(bs, max_steps=steps), train_dataset=rows))

def hf_classes(folder, **more):
    from transformers import DataCollatorWithPadding, Trainer
    rows = [dict(t, input_ids=t['input_ids'].tolist(), attention_mask=[1]*len(t['input_ids'])) for t in texts()]
    from datasets import Dataset
    tok = transformers.AutoTokenizer.from_pretrained(folder/'dpo')
    args = hf_args(16, num_train_epochs=1, **more)
    return lambda: hf_train(Trainer(bert(), args, train_dataset=Dataset.from_list(rows), data_collator=DataCollatorWithPadding(tok)))

ANSWERS = dict(n=64, tokens=128)

def asked(folder):
    "A model of random weights that are large enough to wander, its stop tokens one in fifty, and prompts of 8 to 160 tokens"
    tok,g = transformers.AutoTokenizer.from_pretrained(folder/'dpo'),torch.Generator().manual_seed(0)
    model = llama(256, 4096, initializer_range=.3).eval()
    model.generation_config.eos_token_id = [tok.eos_token_id, *torch.randperm(4096, generator=g)[:80].tolist()]
    sizes = torch.randint(8, 161, (ANSWERS['n'],), generator=g).tolist()
    return model, tok, [torch.randint(100, 4096, (k,), generator=g).tolist() for k in sizes]

def answered(model, rows, generate):
    "Tokens of the answers up to their stop token, and seconds; the sum of their ids tells whether two sides agree"
    found,stops = [],{*model.generation_config.eos_token_id}
    seconds = timed(lambda: found.extend(generate()))
    cut = [a[:next((i+1 for i,t in enumerate(a) if t in stops), len(a))] for a in found]
    return sum(map(len, cut)), seconds, dict(ids=sum((i+1)*t for a in cut for i,t in enumerate(a)))

def hf_answers(folder, **more):
    model,tok,rows = asked(folder)
    def generate(n=ANSWERS['tokens']):
        batch = tok.pad(dict(input_ids=rows), padding_side='left', return_attention_mask=True, return_tensors='pt')
        ids = batch['input_ids']
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=batch['attention_mask'], do_sample=False, max_new_tokens=n,
                                 pad_token_id=tok.pad_token_id, **more)
        return out[:, ids.shape[1]:].tolist()
    generate(2)
    return lambda: answered(model, rows, generate)

def trl_sft(folder, **more):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    tok,rows = transformers.AutoTokenizer.from_pretrained(folder),map(json.loads, open(folder/'instructions.jsonl'))
    rows = Dataset.from_list([dict(prompt=r['messages'][:-1], completion=r['messages'][-1:]) for r in rows])
    def train():
        args = hf_args(8, SFTConfig, num_train_epochs=1, max_length=512, dataset_num_proc=1, **more)
        return hf_train(SFTTrainer(llama(256, 4096), args=args, train_dataset=rows, processing_class=tok))
    return train

attention = 'q_proj','k_proj','v_proj','o_proj'

def trl_dpo(folder, method, **more):
    "The reference's log-probabilities are computed beforehand, TRL's fastest way, and not timed; lmft's neither"
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer
    tok = transformers.AutoTokenizer.from_pretrained(folder/'dpo')
    def turns(r): return {k: [dict(role='user' if k=='prompt' else 'assistant', content=v)] for k,v in r.items()}
    rows = Dataset.from_list([turns(r) for r in read_pairs(folder)])
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(attention), task_type='CAUSAL_LM') if method=='lora' else None
    def train():
        args = hf_args(8, DPOConfig, num_train_epochs=1, max_length=None, precompute_ref_log_probs=True, precompute_ref_batch_size=8, **more)
        trainer = DPOTrainer(llama(256, 4096), args=args, train_dataset=rows, processing_class=tok, peft_config=lora)
        data = trainer.train_dataset                                     # transformers looks for `input_ids`, which pairs do not have
        trainer.train_dataset = data.add_column('length', [max(len(r['chosen_ids']), len(r['rejected_ids'])) for r in data])
        return len(rows), timed(trainer.train)
    return train

def trl_grpo(folder, **more):
    "transformers' generation, the KL in the loss, one update a round; completions of the same length"
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    tok,g = transformers.AutoTokenizer.from_pretrained(folder/'dpo'),GRPO
    rows = Dataset.from_list([dict(prompt=[dict(role='user', content=r['prompt'])]) for r in read_pairs(folder)])
    def reward(completions, **kwargs): return vowels(None, [c[0]['content'] for c in completions])
    def train():
        args = hf_args(g['n'], GRPOConfig, max_steps=g['rounds'], num_generations=g['group'], max_completion_length=g['tokens'], beta=.05,
                       num_iterations=1, steps_per_generation=1, loss_type='grpo', **more)
        llama(256, 4096).save_pretrained(folder/'policy')                # TRL opens the reference by the policy's name
        trainer = GRPOTrainer(LlamaForCausalLM.from_pretrained(folder/'policy'), reward, args=args, train_dataset=rows, processing_class=tok)
        seconds = timed(trainer.train)
        return g['rounds']*g['n'], seconds, dict(length=next(h['completions/mean_length'] for h in trainer.state.log_history if 'completions/mean_length' in h))
    return train

def read_pairs(folder): return [json.loads(l) for l in open(folder/'pairs.jsonl')]

# ---------- torch alone

def raw_blocks(folder, width, vocab, bs, seq_len, steps):
    "The shortest honest loop: fused AdamW, clipping, all logits"
    batches = blocks(vocab, bs, seq_len, steps).split(bs)
    def loop(model):
        opt = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        model.train()
        for ids in batches:
            logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[:,:-1].flatten(0, 1), ids[:,1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            opt.step()
            opt.zero_grad()
            loss.item()
    def train():
        model = llama(width, vocab)
        return steps*bs*seq_len, timed(lambda: loop(model))
    return train

def big_vocabulary(folder, way):
    "Loss and gradients for 4,096 positions of width 512, a quarter of them labelled, vocabulary 128,000"
    from transformers.loss.loss_utils import ForCausalLMLoss
    if way=='lmft': from lmft.train.speed import head_loss
    torch.manual_seed(0)
    n,width,vocab = 4096,512,128_000
    head = torch.nn.Linear(width, vocab, bias=False)
    h,y,keep = torch.randn(n, width, requires_grad=True),torch.randint(vocab, (n,)),torch.arange(n)%4==0
    ways = {'HF default': lambda: ForCausalLMLoss(head(h), None, vocab, shift_labels=y.where(keep, -100)),
            'targets alone': lambda: F.cross_entropy(head(h[keep]), y[keep]),
            'lmft': lambda: head_loss(h[keep], head, y[keep])/keep.sum()}
    def train():
        seconds = timed(lambda: ways[way]().backward())
        return n, seconds, dict(grad_norm=head.weight.grad.norm().item())
    return train

# ---------- the benches

def of(f, *args, **kwargs): return lambda folder: f(folder, *args, **kwargs)
def on_blocks(size): return {'lmft': of(lmft_blocks, **size), 'HF Trainer': of(hf_blocks, **size), 'raw loop': of(raw_blocks, **size)}
def on_pairs(method): return {'lmft': of(lmft_dpo, method), 'TRL': of(trl_dpo, method),
                              'TRL, by length': of(trl_dpo, method, train_sampling_strategy='group_by_length', remove_unused_columns=False)}

benches = {
    'a step of a 4x64 model': on_blocks(SMALL),
    'pretraining a 4x256 model': on_blocks(LARGE),
    'SFT on mixed lengths': {'lmft': of(lmft_sft), 'lmft, any order': of(lmft_sft, by_length=False),
                             'lmft, all logits': of(lmft_sft, all_logits=True), 'lmft, packed': of(lmft_sft, packed=True),
                             'TRL': of(trl_sft), 'TRL, by length': of(trl_sft, train_sampling_strategy='group_by_length'),
                             'TRL, packed': of(trl_sft, packing=True)},
    'classification': {'lmft': of(lmft_classes), 'HF Trainer': of(hf_classes),
                       'HF Trainer, by length': of(hf_classes, train_sampling_strategy='group_by_length')},
    'generation': {'lmft': of(lmft_answers), '🤗 generate': of(hf_answers),
                   '🤗 generate, static': of(hf_answers, cache_implementation='static', disable_compile=True)},
    'DPO, full': on_pairs('full'), 'DPO, LoRA': on_pairs('lora'), 'GRPO': {'lmft': of(lmft_grpo), 'TRL': of(trl_grpo)},
    'loss at vocabulary 128k': {w: of(big_vocabulary, w) for w in ('lmft', 'targets alone', 'HF default')},
    'checkpoints': {'every 100 steps': of(lmft_saving, 100), 'none': of(lmft_saving, 0)}}

def memory(key):
    "VmRSS, what the process holds, or VmHWM, the most it held, in MiB; None where there is no /proc"
    try: return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))/1024
    except OSError: return None

def forget_peak():
    try: Path('/proc/self/clear_refs').write_text('5')
    except OSError: pass

def profile_of(train):
    "Shares of the time by kind of work, of the first contestants' loops"
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU]) as p: seconds = train()[1]
    kinds = {'matrix products': ('aten::mm', 'aten::addmm', 'aten::bmm'), 'attention': ('scaled_dot',), 'optimiser': ('adam',),
             'loss': ('softmax', 'nll'), 'other torch': ('aten::',)}
    found = dict.fromkeys(kinds, 0.)
    for e in p.key_averages():
        kind = next((k for k,names in kinds.items() if any(n in e.key for n in names)), None)
        if kind and e.key.startswith('aten::'): found[kind] += e.self_cpu_time_total/1e6
    return dict(shares={**{k: v/seconds for k,v in found.items()}, 'Python': max(0., 1-sum(found.values())/seconds)})

def main(bench, who, folder, *how):
    train = benches[bench][who](Path(folder))
    if 'profile' in how: return profile_of(train)
    forget_peak()
    before = memory('VmRSS')
    done,seconds,*more = train()
    return dict(done=done, seconds=seconds, cpu_s=timed.cpu, peak_mib=before and memory('VmHWM')-before, **(more[0] if more else {}))

if __name__=='__main__':
    out,sys.stdout = sys.stdout,open(os.devnull, 'w')
    result = main(*sys.argv[1:])
    print(json.dumps(result), file=out)
