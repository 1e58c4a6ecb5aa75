"Task files for lm-evaluation-harness, read back by a plain loop over 🤗's model, and by the harness where it is installed"
import re, runpy
import pytest, torch, yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from lmft.core import set_seed
from lmft.data.tokenizers import train_tokenizer
from lmft.evals.evaluation import evaluate
from lmft.evals.folds import tune
from lmft.evals.harness import harness_task
from lmft.evals.prompting import draw_examples
from lmft.models.loading import new_model, save_model
from lmft.world.facts import World
from lmft.world.tasks import task_rows

kinds = dict(food_review='acc', nli_things='acc', about_people='exact_match', past_tense='rouge_l')

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "(folder with `model` and `tasks`, our table): a small model that was tuned on the rows that are asked"
    folder,world = tmp_path_factory.mktemp('harness'),World(0)
    rows = {n: task_rows(world, n, 30, 'test') for n in kinds}
    tok = train_tokenizer([f"{r['instruction']} Q: {r['input']} A: {r['output']}" for rs in rows.values() for r in rs], vocab_size=800)
    set_seed(0)
    model = new_model(tok, seq_len=256, hidden_size=64, num_hidden_layers=2, intermediate_size=128)
    model = tune(model, tok, [r for rs in rows.values() for r in rs], steps=400, lr=3e-3)
    save_model(model, tok, folder/'model')
    shown = {n: draw_examples(rs, rs, 2*(n=='nli_things')) for n,rs in rows.items()}
    for n,rs in rows.items(): harness_task(rs, folder/'tasks', shots=2*(n=='nli_things'))
    return folder, {n: evaluate(model, tok, rs, shown[n]).iloc[0] for n,rs in rows.items()}

def settings_of(folder, name):
    "The YAML file; the name of a function stays a string"
    text = (folder/'tasks'/f'{name}.yaml').read_text()
    return yaml.safe_load(re.sub(r'!function lmft_task\.(\w+)', r'\1', text))

def plain_score(model, tok, task, own, doc):
    "One record, without batches, by the definitions in the harness's manual"
    prompt = tok(doc[task['doc_to_text']], return_tensors='pt').input_ids
    if task['output_type']=='multiple_choice':
        sums = []
        for choice in doc[task['doc_to_choice']]:
            ids = tok(doc['prompt']+task['target_delimiter']+choice, return_tensors='pt').input_ids
            logps = model(ids).logits[0,:-1].log_softmax(-1).gather(1, ids[0,1:,None])[:,0]
            sums.append(logps[prompt.shape[1]-1:].sum().item())
        return float(sums.index(max(sums)) in doc[task['doc_to_target']])
    how = dict(task['generation_kwargs'])
    assert how.pop('until')==[] and how.pop('do_sample') is False
    said = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=how.pop('max_gen_toks'))
    result, = own[task['process_results']](doc, [tok.decode(said[0, prompt.shape[1]:], skip_special_tokens=True)]).values()
    return result

@pytest.mark.parametrize('name', kinds)
@torch.no_grad()
def test_plain_loop(made, name):
    folder,ours = made
    model,tok = AutoModelForCausalLM.from_pretrained(folder/'model').eval(),AutoTokenizer.from_pretrained(folder/'model')
    task,own = settings_of(folder, name),runpy.run_path(str(folder/'tasks/lmft_task.py'))
    docs = own[task['custom_dataset']](**task['dataset_kwargs'], **task['metadata'])[task['test_split']]
    assert (task['task'], task['num_fewshot'], task['metric_list'][0]['metric'], len(docs)) == (name, 0, kinds[name], 30)
    scores = [plain_score(model, tok, task, own, d) for d in docs]
    assert sum(scores)/len(scores) == pytest.approx(ours[name].score, abs=1e-9) and ours[name].score>0

def test_a_folder_can_be_moved(made):
    "No file names the folder that it was written to"
    assert not [p for p in (made[0]/'tasks').iterdir() if str(made[0]) in p.read_text(encoding='utf-8')]

def test_the_harness(made):
    lm_eval = pytest.importorskip('lm_eval', reason='lm_eval is not installed; the plain loop above stands for it')
    from lm_eval.tasks import TaskManager
    folder,ours = made
    manager = TaskManager(include_path=str(folder/'tasks'), include_defaults=False)
    found = lm_eval.simple_evaluate('hf', f"pretrained={folder/'model'}", tasks=[*kinds], task_manager=manager, device='cpu', batch_size=7)
    for n,metric in kinds.items():
        line = found['results'][n]
        assert (line[f'{metric},none'], line[f'{metric}_stderr,none']) == pytest.approx((ours[n].score, ours[n].se), abs=1e-9), n
