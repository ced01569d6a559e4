"""How datasets are stored in folders. A layout is an object built from the config section `data.layout`."""
