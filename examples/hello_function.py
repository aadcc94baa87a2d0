"""The smallest app: one function, served over HTTP.

glowplug up && glowplug deploy examples/hello_function.py
curl localhost:8080/hello/greet/call -d '{"name": "Ada"}'       # {"result": "Hello, Ada!"}
python examples/hello_function.py                               # the same from Python
"""

import glowplug as gp

app = gp.App("hello")


@app.function(snapshot=True, scaledown_window_s=30)
def greet(name: str = "world") -> str:
    return f"Hello, {name}!"


@app.function()
def count(to: int):
    yield from range(1, to + 1)  # a generator's results arrive one by one


if __name__ == "__main__":
    print(greet("here"), greet.remote(name="there"))
    print(list(greet.map(["Ada", "Grace", "Edsger"])))
    for number in count.remote(to=3):
        print(number)
