import os
from pathlib import Path
import pytest

@pytest.fixture(scope='session')
def data():
    "The folder of real data that `$LMFT_DATA` names"
    if not os.environ.get('LMFT_DATA'):
        pytest.skip("LMFT_DATA is not set; README.md, 'Real data', says where such data is had")
    return Path(os.environ['LMFT_DATA'])
