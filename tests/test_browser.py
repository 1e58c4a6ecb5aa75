"The site in a browser, as `make preview` leaves it: on a phone, without an error, with nothing from another host"
import shutil, threading
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import pytest
from chores import root

html = root/'_preview/html'
chrome = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)
if not chrome: pytest.skip('no Chromium: apt-get install chromium', allow_module_level=True)
if not (html/'index.html').exists(): pytest.skip('no pages: make preview', allow_module_level=True)
sync_api = pytest.importorskip('playwright.sync_api', reason='no driver: make preview installs it')
pages = sorted(p.relative_to(html).as_posix() for p in html.rglob('*.html') if '_static' not in p.parts)

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def host():
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=html)) as srv:
        threading.Thread(target=srv.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{srv.server_port}'
        srv.shutdown()

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        with closing(p.chromium.launch(executable_path=chrome, args=['--no-sandbox'])) as b: yield b

@pytest.fixture(params=[390, 1400])
def page(browser, host, request):
    "A page whose faults are collected"
    with closing(browser.new_page(viewport=dict(width=request.param, height=900))) as page:
        page.set_default_timeout(300_000)                # a busy machine is no fault
        page.faults = []
        page.on('console', lambda m: m.type=='error' and page.faults.append(m.text))
        page.on('pageerror', lambda e: page.faults.append(str(e)))
        page.on('request', lambda r: r.url.startswith((host, 'data:')) or page.faults.append(r.url))
        yield page
        assert not page.faults

def test_every_page(page, host):
    wide,missing = {},[]
    for p in pages:
        page.goto(f'{host}/{p}')
        over = page.evaluate('document.scrollingElement.scrollWidth - innerWidth')
        if over>0: wide[p] = over
        bad = page.evaluate('[...document.querySelectorAll("article img")].some(i => !i.alt || !i.naturalWidth)')
        if bad: missing.append(p)
    assert not wide, 'wider than the screen'
    assert not missing, 'an image without its picture or its alt text'

def test_home_and_lesson(page, host):
    page.goto(host)
    assert page.locator('h1').first.inner_text().startswith('lmft')
    page.goto(f'{host}/learn/adapters.html')
    assert 'Adapters' in page.title() and page.locator('article math').count()
    page.locator('.prev-next-area a.right-next').click()
    assert page.url.endswith('/learn/prompting.html')

def test_search(page, host):
    page.goto(f'{host}/search.html?q=adapter')
    page.wait_for_selector('#search-results li a')
    assert any('adapters.html' in a.get_attribute('href') for a in page.locator('#search-results li a').all())

def test_dark(page, host):
    page.emulate_media(color_scheme='dark')
    page.goto(host)
    assert page.evaluate('document.documentElement.dataset.theme') == 'dark'

def test_options_of_a_command(page, host):
    "What a command takes from its stages and its run stands in a table with default and help"
    page.goto(f'{host}/reference/training.html')
    row = page.locator('#pretrain tr', has_text='max_steps')
    assert row.count() and all(row.locator('td').nth(i).inner_text() for i in (1, 2))
