"""The tests on every Python, and with the oldest and newest NumPy and Numba that pyproject.toml admits.

`nox` runs these; `nox -s "tests-3.10(oldest)"` one; what follows ``--`` goes to pytest in the place of the
selection below. `nox -s docs` builds the site, `nox -s links` follows its links.
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests"]

OLDEST = {"numpy": "1.26.0", "numba": "0.61.0"}
# The first release with wheels for it.
OLDEST_NUMPY = {"3.13": "2.1.0"}
REDUCED = [
    f"tests/{package}/test_{name}.py"
    for package, names in {
        "api": ("activations", "derivatives", "losses"),
        "arrays": ("blocks", "threads"),
        "kernels": ("interpreted",),
        "runtime": ("cache", "hazards"),
    }.items()
    for name in names
]


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("versions", ["oldest", "newest"], ids=["oldest", "newest"])
def tests(session: nox.Session, versions: str) -> None:
    """A selection of the tests, or what is asked for."""
    wanted = ["numpy", "numba"]
    if versions == "oldest":
        oldest = OLDEST | {"numpy": OLDEST_NUMPY.get(str(session.python), OLDEST["numpy"])}
        wanted = [f"{package}=={version}" for package, version in oldest.items()]
    others = ("pytest", "pytest-rerunfailures", "pytest-xdist", "hypothesis", "mpmath", "scipy")
    # No compiled kernels: it is Numba's versions that are tested.
    session.install("--upgrade", *wanted, ".", *others, env={"FASTSOFTMAX_BUILD": "none"})
    session.run("python", "-m", "pytest", "-p", "no:cacheprovider", *(session.posargs or REDUCED))


def _site(session: nox.Session, builder: str) -> None:
    session.install(".[docs]", env={"FASTSOFTMAX_BUILD": "none"})
    output = f"docs/_build/{builder}"
    online = {"FASTSOFTMAX_DOCS_ONLINE": "1"}
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", builder, "docs", output, env=online)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in docs/_build/html, with links into the documentation of Python, NumPy and others."""
    _site(session, "html")


@nox.session
def links(session: nox.Session) -> None:
    """Whether every link of the site leads somewhere."""
    _site(session, "linkcheck")
