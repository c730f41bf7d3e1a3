"""Checkpoints whose pickles call functions, or make objects and fill them with what a load must not run."""

from __future__ import annotations

from checkpoint_writer import (
    FORWARD,
    LINEAR,
    MARK,
    TOUCH,
    archive,
    case,
    dictionary,
    layer,
    name,
    number,
    pickled,
    reduce,
    tensor,
    text,
    tuple_of,
)

# Functions that are called --------------------------------------------------------------------------------------------
CODE = text(f"open('{MARK}', 'w')")
for path, args in {
    "os.system": [TOUCH],
    "posix.system": [TOUCH],
    "nt.system": [TOUCH],
    "os.popen": [TOUCH],
    "subprocess.Popen": [TOUCH],
    "subprocess.getoutput": [TOUCH],
    "pty.spawn": [text("true")],
    "builtins.eval": [CODE],
    "builtins.exec": [CODE],
    "__builtin__.eval": [CODE],
    "builtins.compile": [CODE, text("x"), text("exec")],
    "builtins.open": [text(MARK), text("w")],
    "builtins.__import__": [text("antigravity")],
    "importlib.import_module": [text("antigravity")],
    "runpy._run_code": [CODE, b"}"],
    "timeit.timeit": [CODE],
    "shutil.rmtree": [text(MARK)],
    "webbrowser.open": [text("http://127.0.0.1:9")],
    "operator.attrgetter": [text("system")],
    "functools.partial": [b"}", TOUCH],
    "types.FunctionType": [text("x"), b"}"],
    "code.InteractiveInterpreter": [],
    "numpy.load": [text(MARK)],
    "numpy.core.multiarray._reconstruct": [name("numpy.ndarray"), tuple_of(number(10**12)), text("O")],
    "torch.load": [text(MARK)],
    "torch.jit.load": [text(MARK)],
    "torch.hub.load": [text("x/y"), text("z")],
    "torch.storage._load_from_bytes": [text("x")],
    "torch._utils._rebuild_wrapper_subclass": [text("x")],
    "torch.utils.cpp_extension.load_inline": [text("x"), text("y")],
    "torch.utils.collect_env.run": [TOUCH],
    "torch.distributed.rpc.init_rpc": [text("x")],
    "bytearray": [number(2**40)],
    "builtins.bytearray": [number(2**40)],
    "builtins.range": [number(2**40)],
    # of modules whose classes are allowed
    "ultralytics.nn.tasks.torch_safe_load": [text(MARK)],
    "ultralytics.nn.tasks.yaml_model_load": [text("http://127.0.0.1:9/x.yaml")],
    "ultralytics.nn.tasks.check_requirements": [text("antigravity")],
    "ultralytics.nn.AddModules.registry.register": [name("torch.nn.modules.linear.Identity")],
    "ultralytics.nn.AddModules.layers.tokens.multiply": [number(1), number(1), number(1)],
    "ultralytics.fork.atomic_write.write_atomically": [text(MARK), text("x")],
    "ultralytics.fork.checkpoints.allowed_calls.make_path": [text(MARK)],
    "ultralytics.utils.downloads.safe_download": [text("http://127.0.0.1:9/x")],
    "torch.nn.modules.module.register_module_forward_hook": [name("torch.nn.modules.linear.Identity")],
    "torch.nn.modules.utils._ntuple": [number(3)],
    "timm.layers.helpers.to_ntuple": [number(3)],
    "torchvision.models._api.get_model": [text("resnet18")],
    "torchvision.models.resnet18": [],
    # classes, whose constructors would run
    "torch.nn.modules.linear.Linear": [number(10**6), number(10**6)],
    "ultralytics.nn.tasks.DetectionModel": [text("http://127.0.0.1:9/x.yaml")],
    "ultralytics.nn.modules.block.TorchVision": [text("resnet18"), text("DEFAULT")],
    "ultralytics.utils.IterableSimpleNamespace": [number(1)],
    "torch.nn.modules.linear.Identity": [],
    "torch.jit._script.ScriptModule": [],
    "_codecs.encode": [text("x"), text("rot13")],
    "collections.OrderedDict": [number(3)],
    "pathlib.PosixPath": [number(3)],
    "torch.Size": [tuple_of(tuple_of(number(3)))],
}.items():
    pickled(f"calls {path}", reduce(path, *args))

for attribute in "__init__", "__globals__", "__class__", "__reduce__", "register_forward_hook", "load_state_dict":
    pickled(f"takes {attribute} of a class", name("builtins.getattr") + tuple_of(LINEAR, text(attribute)) + b"R")
    pickled(f"takes {attribute} of a layer", name("builtins.getattr") + tuple_of(layer(), text(attribute)) + b"R")
pickled("takes __globals__ of forward", name("builtins.getattr") + tuple_of(FORWARD, text("__globals__")) + b"R")
pickled("calls forward", FORWARD + tuple_of(text("x")) + b"R")
DOTTED = text("ultralytics.nn.tasks") + text("torch.os.system") + b"\x93"
pickled("takes a dotted name", DOTTED + tuple_of(TOUCH) + b"R", 4)
pickled("takes a module", name("ultralytics.nn.tasks.torch"))

pickled("a partial of a function", reduce("functools.partial", name("os.system")))
pickled("a partial of a model", reduce("functools.partial", name("ultralytics.nn.tasks.DetectionModel")))
PARTIAL = reduce("functools.partial", LINEAR)
pickled("a partial that is called", PARTIAL + tuple_of(number(10**6), number(10**6)) + b"R")
pickled("a partial that replaces forward", layer(forward=PARTIAL))
STATE = tuple_of(name("os.system"), tuple_of(TOUCH), b"}", dictionary(x=FORWARD))
pickled("a partial that is filled with more", PARTIAL + STATE + b"b")
pickled("a namespace that is called", name("types.SimpleNamespace") + b")R" + dictionary(keys=PARTIAL) + b"b")
case(
    "a namespace as the arguments of a training",
    lambda: archive(b"\x80\x02" + dictionary(model=layer(), train_args=name("types.SimpleNamespace") + b")R") + b"."),
)
case("a list as the model", lambda: archive(b"\x80\x02" + dictionary(model=b"]") + b"."))
SHARED = b"K\x01" + b"q\x01h\x01\x86" * 60
pickled("tuples of the same tuples of the same tuples", b"]" + SHARED + b"a")
LONG = b"(" + b"N" * 100_000 + b"tq\x02"
pickled("a long tuple held by the thousand", b"](" + LONG + b"h\x02" * 1000 + b"e")
OWNER = "ultralytics.nn.AddModules.EMO.DropPath"
METHOD = name("builtins.getattr") + tuple_of(name(OWNER), text("forward")) + b"R"
for replaced in ("train", "_apply", "eval", "to", "float"):
    pickled(f"replaces {replaced} by a method of its own", layer(OWNER, **{replaced: METHOD}))
pickled("takes register of the owner's files", layer(forward=name("ultralytics.nn.AddModules.registry.register")))
pickled(
    "takes a module that the owner's file imports", layer(act=name("ultralytics.nn.AddModules.registry.make_divisible"))
)
EMPTY_ARRAY = reduce(
    "numpy.core.multiarray._reconstruct",
    name("numpy.ndarray"),
    tuple_of(number(0)),
    reduce("_codecs.encode", text("b"), text("latin1")),
)
for title, shape, data in (
    ("an array of a terabyte", (2**40,), b"x"),
    ("an array that is multiplied", (2**20, 2**20, 0, 1), b"x"),
    ("an array of minus one", (-1,), b"x"),
    ("an array without numbers", (4,), b""),
):
    dims = tuple_of(*map(number, shape))
    content = reduce("_codecs.encode", text(data.decode()), text("latin1"))
    dtype = reduce("numpy.dtype", text("u1"))
    pickled(title, EMPTY_ARRAY + tuple_of(number(1), dims, dtype, b"\x89", content) + b"b")
pickled(
    "an array of objects",
    EMPTY_ARRAY + tuple_of(number(1), tuple_of(number(1)), reduce("numpy.dtype", text("O")), b"\x89", b"]") + b"b",
)
EINOPS = name("einops.layers.torch.Rearrange") + b")\x81"
for title, pattern, sizes in (
    ("a pattern of a megabyte", "a " * 500_000 + "-> a", b"}"),
    ("a pattern that is none", "a b -> c", b"}"),
    ("a pattern with sizes that are none", "(a b) -> a b", dictionary(a=text("x"))),
    ("a pattern with a size of 2 ** 60", "(a b) -> a b", dictionary(a=number(2**60))),
):
    pickled(title, EINOPS + dictionary(pattern=text(pattern), axes_lengths=sizes) + b"b")
pickled("a pattern with more", EINOPS + dictionary(pattern=text("a -> a"), axes_lengths=b"}", _modules=b"}") + b"b")

# Objects that are made and filled -------------------------------------------------------------------------------------
pickled("makes an object with arguments", LINEAR + tuple_of(number(10**6), number(10**6)) + b"\x81")
pickled("makes an object with keywords", LINEAR + b")}\x92", 4)
pickled("makes a tuple", name("builtins.tuple") + b")\x81")
pickled("fills a class", LINEAR + dictionary(forward=FORWARD) + b"b")
pickled("fills a tensor", tensor((4,), (1,)) + dictionary(x=number(1)) + b"b")
pickled("fills a dictionary", reduce("collections.OrderedDict") + dictionary(items=FORWARD) + b"b")
pickled("replaces forward", layer(forward=FORWARD))
pickled("replaces forward by a class", layer(forward=name("ultralytics.nn.tasks.DetectionModel")))
pickled("replaces forward by a layer", layer(forward=layer()))
pickled("replaces forward by an activation", layer(forward=name("torch.nn.functional.relu")))
pickled(
    "takes torch.load of torch's functions",
    name("builtins.getattr") + tuple_of(name("torch._C._VariableFunctionsClass"), text("from_file")) + b"R",
)
pickled("calls an activation", reduce("torch.nn.functional.relu", tensor((4,), (1,))))
pickled("calls torch's functions", reduce("torch._C._VariableFunctionsClass"))
pickled("keeps a class that is called", layer(act=name("ultralytics.nn.tasks.DetectionModel")))
pickled("hooks into forward", layer(_forward_hooks=b"}" + number(0) + FORWARD + b"s"))
pickled("hooks into state_dict", layer(_state_dict_hooks=b"}" + number(0) + FORWARD + b"s"))
pickled("has no layers", name("torch.nn.modules.linear.Identity") + b")\x81}b")
pickled("has no attributes", name("torch.nn.modules.linear.Identity") + b")\x81")
pickled("has layers that are none", layer(_modules=dictionary(x=number(1))))
pickled("has parameters that are none", layer(_parameters=dictionary(x=number(1))))
pickled("has slots", layer() + b"N" + dictionary(forward=FORWARD) + b"\x86b")
pickled("is no dictionary of attributes", layer() + b"]b")
pickled("sets an item of a layer", layer("torch.nn.modules.container.ModuleList") + number(0) + number(1) + b"s")
pickled("appends to a layer", layer("torch.nn.modules.container.ModuleList") + number(0) + b"a")
pickled("instance", b"(" + TOUCH + b"ios\nsystem\n")
pickled("object", b"(" + name("os.system") + TOUCH + b"o")
pickled("extension", b"\x82\x01")
pickled("persistent text", b"Px\n")
pickled("persistent module", tuple_of(text("module"), LINEAR, text("x"), text("y")) + b"Q")
pickled("a buffer from elsewhere", b"\x97", 5)
MODELOPT = dictionary(model=layer(), modelopt=dictionary(x=number(1)))
case("quantizes as another package says", lambda: archive(b"\x80\x02" + MODELOPT + b"."))
