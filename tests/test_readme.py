"README.md is its notebook"
import json, re
from chores import readme, root
from lmft.data.records import read_records

md = (root/'README.md').read_text(encoding='utf-8')

def test_in_step(): assert md == readme(), 'README.md and nbs/index.ipynb differ: edit the notebook, then `make readme`'

def test_no_directive_is_left(): assert not re.search(r'^#\|', md, flags=re.M)

def test_every_make_target_it_names():
    makefile = (root/'Makefile').read_text()
    named = set(re.findall(r'^(?:make|.*`make) (\w+)', md, flags=re.M)) | set(re.findall(r'`make (\w+)`', md))
    assert {'tour', 'test', 'lab'} <= named
    for t in named: assert re.search(rf'^{t}:', makefile, flags=re.M), f'the README names `make {t}`'

def test_its_example_files():
    "Each file is there and can be read; the questions are those of the tutorial, and none of them is asked in the file for validation"
    named = {*re.findall(r'examples/[\w.]+', md)}
    files = {str(p.relative_to(root)) for p in (root/'examples').iterdir()}
    assert named==files
    got = {f: [*read_records([root/f])] for f in files}
    def texts(f): return {*map(str, (r.get('instruction') or r.get('text') or r.get('prompt') for r in got[f]))}
    assert not texts('examples/questions.csv') & texts('examples/unseen.csv') and not texts('examples/topics.csv') & texts('examples/topics_unseen.csv')
    facts,scope = {},json.loads((root/'nbs/tutorials/chat_model.ipynb').read_text())['cells']
    for c in scope:
        if re.search(r'^(facts = \[|general = \{)', ''.join(c['source']), flags=re.M): exec(''.join(c['source']), facts)
    told = [(q, a) for a,_,qs,_ in facts['facts'] for q in qs.split(' / ')]+[*facts['general'].items()]
    assert [(r['instruction'], r['output']) for r in got['examples/questions.csv']]==told
