"README.md is its notebook"
import re
from chores import readme, root

md = (root/'README.md').read_text(encoding='utf-8')

def test_in_step(): assert md == readme(), 'README.md and nbs/index.ipynb differ: edit the notebook, then `make readme`'

def test_no_directive_is_left(): assert not re.search(r'^#\|', md, flags=re.M)

def test_every_make_target_it_names():
    makefile = (root/'Makefile').read_text()
    named = set(re.findall(r'^(?:make|.*`make) (\w+)', md, flags=re.M)) | set(re.findall(r'`make (\w+)`', md))
    assert {'tour', 'test', 'lab'} <= named
    for t in named: assert re.search(rf'^{t}:', makefile, flags=re.M), f'the README names `make {t}`'
