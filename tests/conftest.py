import os
from pathlib import Path
import pytest

@pytest.fixture(scope='session')
def data():
    "The folder of real data that `$LMFT_DATA` names"
    if not os.environ.get('LMFT_DATA'):
        pytest.skip("LMFT_DATA is not set; README.md, 'Real data', says where such data is had")
    return Path(os.environ['LMFT_DATA'])

@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    "What tests keep of data and tokens goes with them"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('LMFT_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield
