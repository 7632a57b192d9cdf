def test_x(made):
    for n, r in made.runs.items():
        print("==", n, r.code); print(r.out); print(r.err)
