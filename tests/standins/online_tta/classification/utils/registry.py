"""A stand-in for the host's registry: names are those of classes, and unique."""


class Registry:
    def __init__(self):
        self._found = {}

    def register(self, obj=None):
        if obj is None:
            return self._keep
        self._keep(obj)

    def _keep(self, obj):
        for name in {obj.__name__, obj.__name__.lower()}:
            assert name not in self._found, f"{name} was registered already"
            self._found[name] = obj
        return obj

    def get(self, name):
        return self._found[name]

    def registered_names(self):
        return list(self._found)


ADAPTATION_REGISTRY = Registry()
