from setuptools import setup

from build_backend.build_ext import BuildExt, extensions

setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
