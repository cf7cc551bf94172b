def collect(store, remove): pass
