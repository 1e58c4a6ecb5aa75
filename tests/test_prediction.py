"Prediction for every task, classification against 🤗's own losses and pipelines, and the views of a classifier"
import json, random, warnings

import numpy as np, pytest, torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Value
from fastai.interpret import ClassificationInterpretation, Interpretation
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, pipeline

from lmft.core import BadRecord, LmftError, set_seed
from lmft.data.tokenizers import train_tokenizer
from lmft.data.records import read_records
from lmft.models.loading import load_model, new_model, save_model
from lmft.stages.classification import (chance_line, class_loss, class_metrics, class_weights, config_for, label_config,
                                        labels_of, problem_of, problem_type, result_line)
from lmft.stages.questions import answer_questions
from lmft.stages.finetuning import classify_dls, classify_examples, predict, tune_learner
from lmft.stages.interpretation import class_report, plot_confusion_matrix, score_records, top_losses
from lmft.models.methods import trainable
from lmft.stages.predicting import made_for, open_for
from lmft.stages.prediction import as_records, predict_records, task_of
from lmft.stages.questions import answer_spans
from running import lines, run
from test_finetuning import encoder, tok, wordpiece, words

rng = random.Random(1)
def say(n): return ' '.join(rng.choices(words, k=n))
problems = dict(single_label_classification=lambda: rng.choice('abc'), 
                multi_label_classification=lambda: rng.sample('abc', rng.randint(0, 3)),
                regression=lambda: rng.gauss(0, 2))
def records_of(problem, n=24, pairs=False):
    rs = [dict(text=say(rng.randint(1, 20)), label=problems[problem]()) for _ in range(n)]
    return [dict(r, text_pair=say(rng.randint(1, 9))) for r in rs] if pairs else rs

cases = [(tok, 'llama'), (tok, 'gpt2'), (tok, 'bert'),
         (wordpiece, 'bert'), (wordpiece, 'roberta'), (wordpiece, 'distilbert')]
def made(t, arch, records):
    set_seed(0)
    config = config_for(records)
    if t is wordpiece: return encoder(arch, t, 'sequence_classification', **config)
    return new_model(t, arch=arch, head='sequence_classification', seq_len=128, **config)

def valid(m, t, records, bs, **kwargs):
    dls = classify_dls(records, records, t, m, bs=bs, device='cpu')
    return list(tune_learner(dls, m, metrics=class_metrics(m), **kwargs).validate())

@pytest.mark.parametrize('pairs', [False, True])
@pytest.mark.parametrize('problem', problems)
@pytest.mark.parametrize('t,arch', cases)
def test_loss_is_transformers_own(t, arch, problem, pairs):
    "The same configuration, the same batch: 🤗's loss, which its `problem_type` chooses, at any size of batches"
    rs = records_of(problem, pairs=pairs)
    m = made(t, arch, rs)
    assert m.config.problem_type == problem == problem_type(m) == problem_of(rs)
    exs = classify_examples(rs, t, m)
    ids = torch.nn.utils.rnn.pad_sequence([e['input_ids'] for e in exs], True, t.pad_token_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(e['input_ids']) for e in exs], True, 0)
    kw = {}
    if 'token_type_ids' in exs[0]:
        kw['token_type_ids'] = torch.nn.utils.rnn.pad_sequence([e['token_type_ids'] for e in exs], True, 0)
    assert bool(kw) == (pairs and arch == 'bert')
    with torch.no_grad(): out = m.eval()(ids, attention_mask=mask, labels=torch.stack([e['target'] for e in exs]), **kw)
    for bs in (5, 24): assert valid(m, t, rs, bs)[0] == pytest.approx(out.loss.item(), abs=1e-5)
    for a,b in zip(predict(m, t, exs, bs=7), out.logits): assert torch.allclose(a[0], b, atol=1e-5)

@pytest.mark.parametrize('problem', problems)
def test_metrics_are_those_of_the_whole(problem):
    rs = records_of(problem, 37)
    m = made(tok, 'llama', rs)
    exs = classify_examples(rs, tok, m)
    z,y = torch.cat(predict(m, tok, exs)),torch.stack([e['target'] for e in exs])
    p = z.argmax(1) if y.ndim==1 else z.sigmoid()>.5
    truth = dict(single_label_classification=lambda: [(p==y).float().mean().item(), f1_score(y, p, average='macro')],
                 multi_label_classification=lambda: [f1_score(y, p, average=a, zero_division=0)
                                                     for a in ('micro', 'macro')],
                 regression=lambda: [(z[:, 0]-y).square().mean().sqrt().item(),
                                     pearsonr(y, z[:, 0]).statistic, spearmanr(y, z[:, 0]).statistic])
    for bs in (4, 37): assert valid(m, tok, rs, bs)[1:] == pytest.approx(truth[problem](), abs=1e-5)

@pytest.mark.parametrize('n_acc,bs', [(1, 12), (3, 4)])
@pytest.mark.parametrize('problem', problems)
def test_accumulation_is_the_big_batch(problem, n_acc, bs):
    "The gradient of one step over 12 records in one or three pieces is that of the mean of torch's own loss"
    rs = records_of(problem, 12)
    m = made(tok, 'llama', rs)
    z = torch.stack([v[0] for v in predict(m, tok, classify_examples(rs, tok, m))])
    y = torch.stack([e['target'] for e in classify_examples(rs, tok, m)])
    own = dict(single_label_classification=F.cross_entropy,
               multi_label_classification=F.binary_cross_entropy_with_logits,
               regression=lambda z, y: F.mse_loss(z[:, 0], y))[problem]
    dls = classify_dls(rs, rs, tok, m, bs=bs, n_acc=n_acc, device='cpu')
    learn = tune_learner(dls, m)
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(1)
    assert learn.recorder.values[0][0] == pytest.approx(own(z, y).item(), abs=1e-5)

@pytest.mark.parametrize('smoothing', [0., .1])
@pytest.mark.parametrize('how', ['balanced', dict(a=4, b=.5), None])
def test_weights_and_smoothing_are_those_of_cross_entropy(how, smoothing):
    rs = records_of('single_label_classification', 40)+[dict(text=say(3), label='a')]*17
    m = made(tok, 'llama', rs)
    w = None if how is None else class_weights(rs, m, how)
    exs = classify_examples(rs, tok, m)
    z,y = torch.cat(predict(m, tok, exs)),torch.stack([e['target'] for e in exs])
    n = torch.bincount(y, minlength=3)
    own = {'balanced': len(rs)/3/n, None: None}.get(how if not isinstance(how, dict) else '', torch.tensor([4, .5, 1.]))
    truth = F.cross_entropy(z, y, own, label_smoothing=smoothing).item()
    assert valid(m, tok, rs, 7, loss_func=class_loss(m, w, smoothing))[0] == pytest.approx(truth, abs=1e-5)

@pytest.mark.parametrize('problem', problems)
@pytest.mark.parametrize('t,arch', [(tok, 'llama'), (tok, 'bert'), (wordpiece, 'bert')])
def test_a_saved_model_is_the_same_in_a_pipeline(t, arch, problem, tmp_path):
    "Names, several names and numbers, singles and pairs: 🤗's pipeline says what predict_records says"
    rs = records_of(problem)
    m = made(t, arch, rs)
    save_model(m, t, tmp_path/'m')
    pipe = pipeline('text-classification', str(tmp_path/'m'), device='cpu', top_k=None)
    pairs = [(say(5), None), (say(9), say(4))]
    ours = predict_records(load_model(tmp_path/'m', 'sequence_classification'), t, [dict(text=a, text_pair=b) for a,b in pairs])
    for (a,b),r in zip(pairs, ours):
        own = pipe({'text': a+('\n' if b and arch=='llama' else ''), **({'text_pair': b} if b else {})})
        if problem == 'regression': assert own[0]['score'] == pytest.approx(r['prediction'], abs=1e-5); continue
        assert {o['label']: pytest.approx(o['score'], abs=1e-5) for o in own} == r['probabilities']
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path/'m').config.problem_type == problem

@pytest.mark.parametrize('problem', problems)
def test_each_problem_is_learned(problem):
    "Words tell the label; the names come back"
    def one():
        some = rng.sample(['cat', 'dog', 'sun'], rng.randint(1, 3))
        y = dict(single_label_classification=lambda: some[-1],
                 multi_label_classification=lambda: sorted(some), regression=lambda: len(some)/2)
        return dict(text=' '.join(some), label=y[problem]())
    rs = [one() for _ in range(120)]
    m = made(tok, 'llama', rs)
    learn = tune_learner(classify_dls(rs[:90], rs[90:], tok, m, bs=10, device='cpu'), m, metrics=class_metrics(m))
    with learn.no_bar(), learn.no_logging(): learn.fit_cos(10)
    got = predict_records(m, tok, rs[90:])
    if problem == 'regression':
        assert learn.validate()[1] < .2 and max(abs(r['prediction']-r['label']) for r in got) < .6
    else: assert sum(r['prediction']==r['label'] for r in got) >= 27
    assert result_line(dict(zip([m.name for m in learn.metrics], learn.validate()[1:])), rs[90:]) is None
    learn.show_results(max_n=2)

def test_labels_that_people_have():
    kinds = {('a', 'b'): ['a', 'b'], (5, 1, 3): ['1', '3', '5'],
             (2019, 2020): ['2019', '2020'], (True, False): ['False', 'True']}
    for ys,names in kinds.items(): assert labels_of([dict(label=y) for y in ys]) == names
    for ys,match in (((1, 'a'), "record 2: field 'label': is 'a'"), (('a', None), 'record 2'),
                     ((['a'], 'a'), 'record 2'),
                     (('a', 1.5), 'record 2'),
                     ((['a', 2],), 'is 2'), (([0, 1, 1],), 'twice'), ((float('inf'), 1.), 'record 1')):
        with pytest.raises(BadRecord, match=match): labels_of([dict(label=y) for y in ys])
    with pytest.raises(LmftError, match='no labelled record'): problem_of([])
    with pytest.warns(UserWarning, match='for classes write whole numbers'):
        problem_of([dict(label=0.), dict(label=1.)])
    m = made(tok, 'llama', [dict(label='a'), dict(label='b')])
    for model_labels,y in (((.5, 1.5), 'a'), ((['a'], ['b']), 'a'), (('a', 'b'), ['a'])):
        with pytest.raises(BadRecord, match="record 2: field 'label'"):
            rs = [dict(text='cat', label=v) for v in model_labels]
            classify_dls([rs[0], dict(text='dog', label=y)], rs, tok, made(tok, 'llama', rs))

@pytest.mark.parametrize('t,arch', cases)
def test_cut_texts_are_counted_and_said(t, arch):
    rs = [dict(text=say(n), label='ab'[n%2]) for n in (3, 60, 4, 70, 5)]
    m = made(t, arch, rs)
    with pytest.warns(UserWarning, match='2 of 5 texts have more than 24 tokens and are cut'):
        exs = classify_examples(rs, t, m, 24)
    assert max(len(e['input_ids']) for e in exs) == 24
    with pytest.warns(UserWarning, match='1 of 1 texts'): predict_records(m, t, [rs[1]], seq_len=24)
    pair = [dict(text=say(80), text_pair='sun sun', label='a'), dict(text='sun sun', text_pair=say(80), label='b')]
    with pytest.warns(UserWarning, match='2 of 2'): exs = classify_examples(pair, t, m, 24)
    assert all(t.decode(e['input_ids']).lower().count('sun') >= 2 for e in exs)     # the short side is whole
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        classify_examples(rs[::2], t, m, 24)

def test_whatever_holds_texts(tmp_path):
    rs = records_of('single_label_classification', 9)
    m = made(tok, 'llama', rs)
    truth = predict_records(m, tok, rs)
    texts = [r['text'] for r in rs]
    (tmp_path/'t.csv').write_text('text,label\n'+''.join(f"{r['text']},{r['label']}\n" for r in rs))
    features = Features(text=Value('string'), label=ClassLabel(names=['a', 'b', 'c']))
    ds = Dataset.from_list([dict(r, label='abc'.index(r['label'])) for r in rs], features=features)
    for data in (texts, tuple(texts), tmp_path/'t.csv', str(tmp_path/'t.csv'), ds, iter(rs)):
        got = predict_records(m, tok, data, bs=4)
        assert [r['text'] for r in got] == texts
        assert [r['prediction'] for r in got] == [r['prediction'] for r in truth]
    assert [r['label'] for r in as_records(ds)] == [r['label'] for r in rs]
    assert predict_records(m, tok, texts[0])[0]['prediction'] == truth[0]['prediction']
    for bad,match in (('nothing.jsonl', 'no such file'), (['a', None], 'record 2'), ([], 'nothing to predict'),
                      ([''], 'is empty'), ([dict(prompt='a')], 'give text')):
        with pytest.raises(LmftError, match=match): predict_records(m, tok, bad)

@pytest.mark.parametrize('arch', ['llama', 'bert'])
def test_answers_of_real_questions(data, arch):
    rs = list(read_records([data/'qa/xquad_en_dev.json']))[::60][:12]
    t = train_tokenizer((r['context'] for r in rs), 1000)
    set_seed(0)
    m = new_model(t, arch=arch, head='question_answering', seq_len=256)
    got = predict_records(m, t, rs, seq_len=128)
    assert [r['answer'] for r in got] == answer_questions(m, t, rs, 128)
    for r in got: assert r['context'][r['start']:r['end']] == r['answer'] and 0 < r['score'] <= 1
    with pytest.raises(BadRecord, match='leave'): answer_spans(m, t, [dict(rs[0], question='why '*200)], 128)

def test_entities_of_real_sentences(data):
    rs = list(read_records([data/'ner/wnut17train.conll']))[:30]
    t = train_tokenizer((' '.join(r['tokens']) for r in rs), 1000)
    m = new_model(t, arch='bert', head='token_classification', seq_len=128, **label_config(['B-X', 'I-X', 'O']))
    for r in predict_records(m, t, rs):
        text = ' '.join(r['tokens'])
        for e in r['entities']: assert text[e['start']:e['end']] == e['text'] and e['type'] == 'X'

@pytest.mark.parametrize('problem', ['single_label_classification', 'multi_label_classification'])
def test_views_of_a_learner(problem):
    rs = records_of(problem, 30)
    m = made(tok, 'llama', rs)
    learn = tune_learner(classify_dls(rs, rs, tok, m, bs=8, device='cpu'), m)
    worst = top_losses(learn, 4)
    own = Interpretation.from_learner(learn)
    assert [r['loss'] for r in worst] == pytest.approx(own.top_losses(4)[0].tolist(), abs=1e-5)
    assert [rs[i]['text'] for i in own.top_losses(4)[1]] == [r['text'] for r in worst]
    p,y,dec = learn.get_preds(with_decoded=True)
    names = list(m.config.id2label.values())
    said = [[k for k,v in zip(names, d) if v] for d in dec] if problem.startswith('multi') else [names[d] for d in dec]
    assert said == [r['prediction'] for r in predict_records(m, tok, rs)]
    n = sum(len(r['label']) if isinstance(r['label'], list) else 1 for r in rs)
    assert class_report(learn).loc[names, 'support'].sum() == n
    if problem.startswith('multi'):
        with pytest.raises(LmftError, match='one class a record'): plot_confusion_matrix(learn)
    else:
        interp = ClassificationInterpretation.from_learner(learn)
        assert (interp.confusion_matrix() == plot_confusion_matrix(learn).confusion_matrix).all()

def test_chance():
    "Models that guess are called so in 19 of 20 cases, models that know more are not, for any share"
    g = np.random.default_rng(0)
    for chance in (.5, .7, .9):
        for n in (40, 400):
            guessed = [chance_line((g.random(n)<chance).mean(), n, chance) for _ in range(300)]
            assert sum(s is None for s in guessed) <= 30
    assert chance_line(.56, 1000, .5) is None and chance_line(.56, 100, .5)
    line = chance_line(.9, 50, .9)
    assert '\n' not in line and 'does not beat guessing' in line and 'pretrained base' in line

def test_what_does_not_fit_is_left_out_by_its_number(tmp_path):
    "A question without a window and a prompt without positions for an answer: an error that names the record of the file, or left out and counted"
    tok = train_tokenizer(['Rosa sings in Lisbon. Who sings?']*9, 300)
    save_model(new_model(tok, head='question_answering', seq_len=256), tok, tmp_path/'qa')
    save_model(new_model(tok, seq_len=64), tok, tmp_path/'lm')
    asked = [dict(context='Rosa sings in Lisbon.', question='Who sings?'+' who'*n) for n in (0, 0, 300, 0)]+[dict(context='', question='?')]
    texts = [dict(prompt='Rosa'+' sings'*n) for n in (1, 1, 300, 1)]+[dict(prompt=' ')]
    for name,task,rows in (('qa', 'qa', asked), ('lm', 'generate', texts)):
        path = tmp_path/f'{name}.jsonl'
        path.write_text('\n'.join(map(json.dumps, [rows[-1], *rows[:-1]])))
        how = ['predict', '--model', tmp_path/name, '--data', path, '--task', task, '--out', tmp_path/f'{name}.out.jsonl', '--max_new_tokens', 4]
        assert 'record 1' in run(*how, code=2)
        run(*how, '--on_bad', 'skip')
        assert len(lines(tmp_path/f'{name}.out.jsonl'))==3
        bad = lines(tmp_path/f'{name}.out.jsonl.bad_records.jsonl')
        assert [b['record'] for b in bad]==[1, 4]

def test_made_for_what(tmp_path):
    "Whole models and adapters of every head, outside of any run, GPT-2's odd class name among them"
    tok = train_tokenizer(['one two three']*9, 300)
    for task,head in (('classify', 'sequence_classification'), ('ner', 'token_classification'), ('qa', 'question_answering'), ('generate', 'causal')):
        for arch in ('gpt2', 'llama'):
            model = new_model(tok, arch=arch, head=head)
            save_model(model, tok, tmp_path/'m')
            assert made_for(tmp_path/'m')==task and open_for(tmp_path/'m', task)
            save_model(trainable(load_model(tmp_path/'m', head), 'lora'), tok, tmp_path/'a')
            assert made_for(tmp_path/'a')==task
        with pytest.raises(LmftError, match='not tuned'): open_for(tmp_path/'m', 'qa' if task!='qa' else 'ner')

def test_unlabelled_parts_of_a_dataset():
    "-1 stands for no label in 🤗 sets, and labels are not needed to predict"
    data = Dataset.from_dict(dict(text=['a', 'b'], label=[1, -1]), Features(dict(text=Value('string'), label=ClassLabel(names=['no', 'yes']))))
    assert [r['label'] for r in as_records(data)]==['yes', None]
