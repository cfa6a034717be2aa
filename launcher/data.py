"""`dataclasses` that cost next to nothing to define: the launcher's start is a budget, and it has a hundred of them.

The standard library writes and compiles the source of six methods for every class, some 0.7 ms each on a server's core,
and imports `inspect` to do so; together that was a third of the launcher's start. Here the methods are ordinary
functions over a list of names, shared by all classes. Making an instance takes about a microsecond more.

Meant are the same words with the same meaning, but only those that the launcher uses: anything else is a TypeError when
the class is defined. Type checkers see the standard library's; `dataclasses.fields`, `replace` and `asdict` work on
these classes, too. Nothing but the interpreter's own modules may be imported here: the guard starts with it.
"""

from __future__ import annotations

__all__ = ["FrozenInstanceError", "asdict", "dataclass", "field", "fields", "replace"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
else:
    from types import MappingProxyType

    _NONE = MappingProxyType({})
    _MISSING = type("Missing", (), {"__repr__": lambda self: "<no default>"})()
    _FIELDS = "__launcher_fields__"

    class FrozenInstanceError(AttributeError):
        """An attribute of a frozen instance was set or deleted."""

    class Field:
        """What is known of one field; attributes as in `dataclasses.Field`."""

        __slots__ = ("compare", "default", "default_factory", "hash", "metadata", "name", "repr", "type")

        def __init__(self, default, default_factory, repr, hash, compare, metadata):
            self.name = self.type = None
            self.default = default
            self.default_factory = default_factory
            self.repr = repr
            self.hash = compare if hash is None else hash
            self.compare = compare
            self.metadata = _NONE if metadata is None else MappingProxyType(metadata)

    def field(*, default=_MISSING, default_factory=_MISSING, repr=True, hash=None, compare=True, metadata=None):
        """As `dataclasses.field`."""
        return Field(default, default_factory, repr, hash, compare, metadata)

    def fields(of):
        """The fields of a class or an instance, in order."""
        return getattr(of, _FIELDS)

    def replace(of, /, **changes):
        """A copy with some values changed."""
        return type(of)(**{one.name: getattr(of, one.name) for one in fields(of)} | changes)

    def asdict(of):
        """A dict of the fields, with what is in them converted, too."""
        return {one.name: _plain(getattr(of, one.name)) for one in fields(of)}

    def _plain(value):
        if hasattr(type(value), _FIELDS):
            return asdict(value)
        if isinstance(value, (list, tuple)):
            parts = [_plain(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return type(value)((_plain(key), _plain(part)) for key, part in value.items())
        return value

    def dataclass(cls=None, /, *, frozen=False, order=False):
        """As `dataclasses.dataclass`."""
        if cls is None:
            return lambda it: _made(it, frozen, order)
        return _made(cls, frozen, order)

    def _made(cls, frozen, order):
        found = _fields_of(cls)
        setattr(cls, _FIELDS, tuple(found.values()))
        cls.__dataclass_fields__ = _Standard()
        cls.__match_args__ = tuple(found)
        _add(cls, "__init__", _init(cls, found))
        _add(cls, "__repr__", _repr)
        compared = tuple(one.name for one in found.values() if one.compare)
        own_eq = "__eq__" in cls.__dict__
        _add(cls, "__eq__", _eq(compared))
        if frozen:
            cls.__setattr__, cls.__delattr__ = _refuse_set, _refuse_delete
            if not own_eq:
                _add(cls, "__hash__", _hash(tuple(one.name for one in found.values() if one.hash)))
        elif "__hash__" not in cls.__dict__ and not own_eq:
            cls.__hash__ = None
        if order:
            for name, test in _ORDER.items():
                setattr(cls, name, _compare(compared, test))
        return cls

    def _add(cls, name, method):
        """A method that the class does not define itself (__eq__ alone makes __hash__ None, which is no definition)."""
        if cls.__dict__.get(name) is None:
            setattr(cls, name, method)

    def _fields_of(cls):
        found = {}
        for base in reversed(cls.__mro__[1:]):
            found.update((one.name, one) for one in base.__dict__.get(_FIELDS, ()))
        for name, kind in cls.__dict__.get("__annotations__", {}).items():  # noqa: RUF063  # inspect is large
            if "ClassVar" in str(kind):
                continue
            if "InitVar" in str(kind):
                raise TypeError(f"{cls.__name__}.{name}: launcher.data knows no InitVar")
            value = cls.__dict__.get(name, _MISSING)
            one = value if isinstance(value, Field) else Field(value, _MISSING, True, None, True, None)
            one.name, one.type = name, kind
            if isinstance(one.default, (list, dict, set)):
                raise TypeError(
                    f"{cls.__name__}.{name}: a {type(one.default).__name__} as default: use default_factory"
                )
            _keep_default(cls, one)
            found[name] = one
        _defaults_last(cls, found.values())
        return found

    def _keep_default(cls, one):
        """A default is an attribute of the class, as without a dataclass; a field() without one is none."""
        if one.default is not _MISSING:
            setattr(cls, one.name, one.default)
        elif one.name in cls.__dict__:
            delattr(cls, one.name)

    def _defaults_last(cls, found):
        before = None
        for one in found:
            if one.default is not _MISSING or one.default_factory is not _MISSING:
                before = one.name
            elif before is not None:
                raise TypeError(f"{cls.__name__}: {one.name} without a default follows {before}, which has one")

    # ------------------------------------------------------------------------------------------------- the methods

    def _init(cls, found):
        names = tuple(found)
        count = len(names)
        known = frozenset(names)
        needed = tuple(n for n, one in found.items() if one.default is _MISSING and one.default_factory is _MISSING)
        defaults = {n: one.default for n, one in found.items() if one.default is not _MISSING}
        factories = {n: one.default_factory for n, one in found.items() if one.default_factory is not _MISSING}
        after = hasattr(cls, "__post_init__")

        def __init__(self, *args, **given):
            values = self.__dict__  # past __setattr__, which refuses
            if not args and given.keys() == known:
                values.update(given)
            elif not given and len(args) == count:
                values.update(zip(names, args, strict=True))
            else:
                complete(values, args, given)
            if after:
                self.__post_init__()

        def complete(values, args, given):
            if len(args) > count:
                raise TypeError(f"{cls.__name__} takes {count} values, {len(args)} were given")
            if given:
                if not given.keys() <= known:
                    raise TypeError(f"{cls.__name__} has no {sorted(given.keys() - known)[0]!r}")
                if not given.keys().isdisjoint(names[: len(args)]):
                    raise TypeError(f"{cls.__name__} got {sorted(given.keys() & set(names[: len(args)]))[0]!r} twice")
            values.update(defaults)
            values.update(zip(names, args))  # noqa: B905  # there may be fewer
            values.update(given)
            for name, factory in factories.items():
                if name not in values:
                    values[name] = factory()
            if len(values) < count:
                lacking = [name for name in needed if name not in values]
                raise TypeError(f"{cls.__name__} lacks {', '.join(lacking)}")

        return __init__

    def _repr(self):
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _values(of, names):
        return [getattr(of, name) for name in names]

    def _eq(names):
        def __eq__(self, other):
            if other.__class__ is not self.__class__:
                return NotImplemented
            return _values(self, names) == _values(other, names)

        return __eq__

    def _hash(names):
        def __hash__(self):
            return hash(tuple(_values(self, names)))

        return __hash__

    _ORDER = {
        "__lt__": lambda one, other: one < other,
        "__le__": lambda one, other: one <= other,
        "__gt__": lambda one, other: one > other,
        "__ge__": lambda one, other: one >= other,
    }

    def _compare(names, test):
        def compare(self, other):
            if other.__class__ is not self.__class__:
                return NotImplemented
            return test(_values(self, names), _values(other, names))

        return compare

    def _refuse_set(self, name, value):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_delete(self, name):
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    class _Standard:
        """`dataclasses` finds its own kind of fields, made when it first asks."""

        def __get__(self, instance, owner):
            import dataclasses

            made = {}
            for one in fields(owner):
                given = {"default": one.default, "default_factory": one.default_factory}
                given = {name: value for name, value in given.items() if value is not _MISSING}
                it = dataclasses.field(
                    repr=one.repr, hash=one.hash, compare=one.compare, metadata=one.metadata, **given
                )
                it.name, it.type, it._field_type = one.name, one.type, dataclasses._FIELD
                made[one.name] = it
            owner.__dataclass_fields__ = made
            return made
