"""`launcher render`: an InferenceService as plain YAML, equal to what the layers of ``k8s/`` produce.

``service.py`` and ``template.py`` read the resource and reject what cannot work, naming the field's path.
``layers.py`` reads the manifests of ``k8s/`` with their comments; they alone decide the shape of an object.
``objects.py`` combines the two and ``text.py`` writes the result. Needs PyYAML (the extra ``render``), which a
launcher in a pod never imports.
"""
