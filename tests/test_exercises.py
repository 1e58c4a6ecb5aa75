"Each lesson ends with exercises: a task, a cell that is still open, and a folded solution that a hidden cell tests"
import json, re
import pytest
from chores import root

@pytest.mark.parametrize('page', sorted((root/'nbs/learn').glob('*.ipynb')), ids=lambda p: p.stem)
def test_exercises(page):
    raw = json.loads(page.read_text(encoding='utf-8'))['cells']
    assert raw[-1]['metadata']['jupyter']=={'source_hidden': True}                # JupyterLab folds the solutions
    cells = [(c['cell_type'], ''.join(c['source'])) for c in raw]
    tasks = [i for i,(kind,text) in enumerate(cells) if kind=='markdown' and '\n### Exercise ' in f'\n{text}']
    assert 2<=len(tasks)<=3
    last,tested = cells[-1]
    assert last=='code' and tested.startswith('#| hide')
    for i in tasks:
        solution, = re.findall(r'<details><summary>Solution</summary>\n\n```python\n(.+?)\n```\n\n</details>', cells[i][1], re.S)
        check,answer = re.search(r'^exercise\((\w+), (.+)\);$', cells[i+1][1], re.M).groups()
        assert '...' in cells[i+1][1] and solution not in cells[i+1][1]
        assert solution in tested and f'check_exercise({check}, {answer}, (' in tested
