def show(nodes, store):
    for n, node in nodes.items(): print(n, node, store.state(node))
