"""The native extra: loops that numba turns into machine code, each equal to a plain function of `kernels`.

Nothing here is imported where numba is not installed. `docs/native.md` says what each is for.
"""
