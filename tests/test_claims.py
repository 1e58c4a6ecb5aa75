"The ledger of claims and what `make claims` runs"
import json, re
import pytest
from chores import claim_pages, root

ledger = sorted((root/'nbs/claims').glob('*.json'))

@pytest.mark.parametrize('path', ledger, ids=lambda p: p.stem)
def test_ledger(path):
    row = json.loads(path.read_text())
    assert row['id'] == path.stem
    assert len(pages := claim_pages(path.stem)) == 1, 'one page measures a claim'
    assert row['n'] and f"n='{row['n']}'" in (root/pages[0]).read_text(encoding='utf-8'), 'the page and the ledger count the same'
    assert len(row['values']) == 1 or len(row['values']) >= 3
    assert row['low'] <= row['mean'] <= row['high'] and min(row['values']) <= row['mean'] <= max(row['values'])

def test_pages_of_claims():
    assert claim_pages('wrong-labels-still-format') == ['nbs/experiments/prompting.ipynb']
    assert set(claim_pages()) >= {f'nbs/experiments/{name}.ipynb' for name in ('preferences', 'prompting', 'rlhf')}
    with pytest.raises(SystemExit, match='no lesson holds the claim no-such-claim'): claim_pages('no-such-claim')

def test_make_claims():
    assert re.search(r'^claims:.*\n\t.*chores\.py claims \$\(ID\)$', (root/'Makefile').read_text(), flags=re.M)
