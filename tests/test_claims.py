"The ledger of claims and what `make claims` runs"
import json, re
import chores, pytest
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

def test_imported():
    code = 'import os, lmft.core\nfrom .facts import ask\nfrom ..data import loaders, words\ndef f(): from ..core import LmftError'
    assert {*chores.imported(code, 'lmft.world')} == {'lmft.core', 'lmft.world.facts', 'lmft.data', 'lmft.data.loaders', 'lmft.data.words'}

def test_page_is_measured_once(monkeypatch, tmp_path, capsys):
    "A second `make claims` leaves out pages whose code was measured; a change in a module that they use, or an ID, measures again"
    page, ran = 'nbs/experiments/drift.ipynb', []
    for f in chores.ledger_rows(page): (tmp_path/f.name).write_text(f.read_text())
    rows = lambda _: {f: json.loads(f.read_text()) for f in sorted(tmp_path.glob('*.json'))}
    monkeypatch.setattr(chores, 'claim_pages', lambda id: [page])
    monkeypatch.setattr(chores, 'ledger_rows', rows)
    monkeypatch.setattr(chores, 'nbdev', lambda cmd, cwd, *args, **kw: ran.append((cmd, *args)))
    def measured(*id):
        ran.clear()
        chores.claims(*id)
        return ('test', page, '--flags', 'slow', '--cell-timeout', '0', '--do-print') in ran
    assert measured() and not measured() and measured('domain-drift')
    assert 'make claims ID=domain-drift' in capsys.readouterr().out
    was = chores.file_of
    changed = tmp_path/'tasks.py'
    changed.write_text(was('lmft.world.facts').read_text()+'\nx = 1')
    monkeypatch.setattr(chores, 'file_of', lambda m: changed if m == 'lmft.world.facts' else was(m))
    assert measured() and not measured()
