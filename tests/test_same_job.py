"The listings of CONTRIBUTING.md, of lmft and of other libraries, do their job as they stand, on a tiny model and little data"
import ast, json, re
import pytest
from datasets import disable_progress_bars

from chores import root
from lmft.core import set_seed
from lmft.data.tokenizers import train_tokenizer
from lmft.models.loading import new_model, save_model

page = (root/'CONTRIBUTING.md').read_text(encoding='utf-8').partition('### The same job elsewhere')[2].partition('\n### ')[0]
listings = re.findall(r'```python\n(.*?)```', page, re.S)
jobs = 'reviews.csv', 'qa.jsonl', 'pairs.jsonl', 'notes.txt'
names = [f"{job.partition('.')[0]}-{who}" for who in ('lmft', 'other') for job in jobs]+['reviews-fastai']
leaves = dict(reviews='out/classes', qa='out/qa', pairs='out/dpo', notes='out/domain')

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Data and models under the names that the listings use"
    top = tmp_path_factory.mktemp('jobs')
    asks = [(f'What is {a} plus {b}?', str(a+b)) for a in range(8) for b in range(8)]
    (top/'reviews.csv').write_text('text,label\n'+''.join(f'it was {w} {i},{y}\n' for i in range(40) for w,y in (('good', 'yes'), ('bad', 'no'))))
    (top/'qa.jsonl').write_text('\n'.join(json.dumps(dict(prompt=q, completion=' '+a)) for q,a in asks))
    (top/'pairs.jsonl').write_text('\n'.join(json.dumps(dict(prompt=q, chosen=' '+a, rejected=' no')) for q,a in asks))
    (top/'notes.txt').write_text('\n\n'.join(f'{q} It is {a}, as everybody knows who can count that far and no further.' for q,a in asks*4))
    tok = train_tokenizer([f'{q} {a} good bad no' for q,a in asks]*3, 400)
    set_seed(0)
    for path in ('my/base', 'my/chat'): save_model(new_model(tok, 'tiny'), tok, top/path)
    masked = train_tokenizer([q for q,_ in asks]*3, 400)
    save_model(new_model(masked, 'tiny', 'bert', 'masked'), masked, top/'bert-base-uncased')
    return top

def test_one_listing_a_job(): assert len(listings)==len(names)

@pytest.mark.parametrize('name', names)
def test_listing(place, monkeypatch, name):
    monkeypatch.chdir(place)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    disable_progress_bars()
    job,_,who = name.partition('-')
    for f in place.glob(f'{leaves[job]}/*'):
        if f.is_file(): f.unlink()
    code = listings[names.index(name)]
    if who=='lmft': code = 'from lmft.all import *\n'+code
    if 'import trl' in code or 'from trl' in code: code = code.replace("eval_strategy='epoch'", "eval_strategy='epoch', bf16=False")
    if who=='fastai': code = code.replace('AWD_LSTM', 'AWD_LSTM, pretrained=False')
    exec(compile(code, name, 'exec'), {'__name__': 'listing'})
    left = place/'models/classes.pth' if who=='fastai' else next((place/leaves[job]).glob('*.safetensors'), None)
    assert left and left.exists()

def counts(code):
    "Lines and imported names of a listing"
    imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom)]
    return len(code.strip().splitlines()), sum(len(n.names) for n in imports)

def test_the_table_counts_right():
    rows = re.findall(r'^\| [^|]+\| (\d+), (\d+) \| \w+ (\d+), (\d+) \|', page, re.M)
    once = counts(re.search(r'`(from lmft.all import \*)`', page)[1])[1]
    found = [(n, once, *counts(other)) for (n,_),other in zip(map(counts, listings[:4]), listings[4:8])]
    assert [tuple(map(int, r)) for r in rows]==found
