select {schema}.ring()
