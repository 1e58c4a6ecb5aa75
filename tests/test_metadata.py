"settings.ini is what pip installed, what nbdev uses and what the constraints satisfy"
import re, tomllib
from configparser import ConfigParser
from importlib.metadata import distribution
import lmft, pytest, yaml
from packaging.requirements import Requirement
from chores import root

ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
dist = distribution('lmft')

def test_installed_is_settings():
    meta = dist.metadata
    assert lmft.__version__ == dist.version == cfg['version']
    assert meta['Summary'] == cfg['description']
    assert meta['License-Expression'] == cfg['license']
    assert meta['Requires-Python'] == f">={cfg['min_python']}"
    assert meta['Description-Content-Type'] == 'text/markdown'

def test_installed_requirements():
    reqs = [Requirement(o) for o in dist.requires]
    want = {str(Requirement(o)) for o in cfg['requirements'].split()}
    assert {str(r) for r in reqs if not r.marker} == want
    dev = {str(Requirement(str(r).split(';')[0])) for r in reqs if r.marker}
    assert dev == {str(Requirement(o)) for o in cfg['dev_requirements'].split()}

def test_console_script():
    found = {e.name: e.value for e in dist.entry_points if e.group == 'console_scripts'}
    assert found == dict([cfg['console_scripts'].split('=')])
    assert callable(dist.entry_points['lmft'].load())

def test_what_stands_twice_agrees():
    proj = tomllib.loads((root/'pyproject.toml').read_text())['project']
    site = yaml.safe_load((root/'_quarto.yml').read_text())['website']
    assert proj['name'] == site['title'] == cfg['lib_name']
    assert site['description'] == cfg['description']
    assert (site['site-url'], site['repo-url']) == (proj['urls']['Documentation'], proj['urls']['Repository'])

def test_quarto_link():
    link = root/'nbs/_quarto.yml'
    assert link.is_symlink() and not link.readlink().is_absolute()
    assert link.resolve() == root/'_quarto.yml'

pins = (root/'constraints.txt').read_text().splitlines()

def test_constraints_are_exact_versions():
    odd = [o for o in pins if not re.fullmatch(r'[A-Za-z0-9._-]+==[A-Za-z0-9.!]+', o)]
    assert not odd, odd
    assert 'torch==2.14.1' in pins

@pytest.mark.parametrize('req', (cfg['requirements'] + ' ' + cfg['dev_requirements']).split())
def test_constraint_satisfies(req):
    req, norm = Requirement(req), lambda o: re.sub(r'[-_.]+', '-', o).lower()
    pinned = {norm(n): v for n,v in (o.split('==') for o in pins)}
    assert norm(req.name) in pinned, f'{req.name} is not in constraints.txt'
    assert pinned[norm(req.name)] in req.specifier
