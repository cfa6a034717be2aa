"""`launcher render`: an InferenceService as plain YAML, the same that the layers of ``k8s/`` would give.

``service.py`` and ``template.py`` read the resource and refuse what cannot work, with the path of the field;
``layers.py`` reads the manifests of ``k8s/`` with their comments, which stay the one place where an object's shape is
decided; ``objects.py`` puts the two together; ``text.py`` writes. Needs PyYAML (the extra ``render``), which no pod's
launcher imports.
"""
