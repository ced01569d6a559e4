"""How datasets lie in their folders: a layout is an object, built from the section `data.layout` of a config."""
